// CoreClient is tiercel::Client as Python needs it: it keeps what a request points at (buffers, page
// descriptions) alive until the ticket is released, and turns results into Python's terms.
//
//   submit(...) -> ticket --(Keep is parked)--> poll() or wait() --> Completion, Keep dropped
//
// Invariants: every method that may block or move bytes runs without the GIL; Python objects are
// touched only with it. A closed client answers every call with ClosedError.
// Threads: any. Errors: usage errors raise; everything else is a status in a block.
#ifndef TIERCEL_CLIENT_PYTHON_SRC_CORE_CLIENT_H_
#define TIERCEL_CLIENT_PYTHON_SRC_CORE_CLIENT_H_

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/cpp/client.h"
#include "kernels/artifact.h"

namespace tiercel::python {

namespace nb = nanobind;

using AnyArray = nb::ndarray<nb::ro>;

struct ClosedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ConnectError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct NotContiguousError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The memory behind a Python object, held: by the buffer protocol, __array_interface__ (arrays whose
// type the buffer protocol cannot name) or DLPack (tensors in host memory). Contiguous, or
// NotContiguousError: nothing is copied to make it so.
class HeldBuffer {
 public:
  HeldBuffer(nb::handle object, bool writable);
  HeldBuffer(HeldBuffer&& other) noexcept
      : view_(other.view_),
        owner_(std::move(other.owner_)),
        tensor_(std::move(other.tensor_)),
        span_(other.span_) {
    other.view_.obj = nullptr;
  }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;
  ~HeldBuffer();  // With the GIL.
  MutableByteSpan span() const { return span_; }

 private:
  bool TryBuffer(nb::handle object, bool writable);
  bool TryArrayInterface(nb::handle object, bool writable);
  bool TryDlpack(nb::handle object, bool writable);

  Py_buffer view_{};
  nb::object owner_;
  AnyArray tensor_;
  MutableByteSpan span_;
};

// Everything that one request points at.
struct Keep {
  std::vector<Chain> chains;
  uint32_t first = 0;
  bool many = false;
  KvLayout layout;
  RequestOptions options;
  std::vector<PagedKv> paged;
  std::vector<uint32_t> pages;
  std::vector<GetSlot> slots;
  std::vector<PutSource> sources;
  std::vector<HeldBuffer> buffers;
  std::vector<nb::object> objects;
};

// How the caller's options reach RequestOptions.
struct Ask {
  double deadline_s = 2.0;
  std::string min_class = "exact";
  std::optional<bool> prefer_small;
  bool no_touch = false;
  bool durable = false;
  std::string reuse = "unknown";
  bool hold = false;
  std::string put_class = "exact";
  std::string codec = "auto";
  std::optional<double> pin_s = std::nullopt;  // 0: no longer.
};
RequestOptions OptionsOf(const Ask& ask);

// An artifact as Python holds it: immutable, and among the process's artifacts in use.
struct HeldArtifact {
  std::shared_ptr<const Artifact> artifact;
};

class CoreClient {
 public:
  explicit CoreClient(const Client::Options& options);
  ~CoreClient() { Close(); }

  void Close();
  bool closed() const;

  enum class Kind : uint8_t { kMatch, kGet, kPut };
  // 0: the queue is full and nothing was submitted.
  Ticket Submit(Kind kind, std::unique_ptr<Keep> keep);
  Completion Run(Kind kind, std::unique_ptr<Keep> keep);
  std::vector<Completion> Poll(size_t max);
  Completion Wait(Ticket ticket);
  void Cancel(Ticket ticket);
  int event_fd() const;

  void Register(uint64_t address, uint64_t bytes);
  void Unregister(uint64_t address, uint64_t bytes);
  void StoreArtifact(const HeldArtifact& artifact, const std::string& name_space, double deadline_s);
  HeldArtifact FetchArtifact(uint64_t id, const std::string& name_space, double deadline_s);
  nb::list ExplainCodecs(const nb::bytes& scope, const KvLayout& layout, const std::string& worst, uint32_t blocks) const;
  nb::dict Stats() const;
  nb::list Nodes() const;
  std::string View() const;
  void SetView(const std::string& json);

 private:
  struct Inner;
  std::shared_ptr<Inner> inner() const;

  mutable std::mutex mutex_;
  std::shared_ptr<Inner> inner_;
};

// Of pages as arrays of addresses: [n, layers] int64 each, one address a plane of one block.
std::unique_ptr<Keep> KeepOfPointers(CoreClient::Kind kind, const Chain& chain, uint32_t first,
                                     uint32_t n, const KvLayout& layout, const AnyArray& k,
                                     const std::optional<AnyArray>& v, const Ask& ask,
                                     uint16_t layer_begin, uint16_t layer_end);
// Of a paged cache and a table of page numbers: [n, pages per block] uint32 or int32 or int64.
std::unique_ptr<Keep> KeepOfPages(CoreClient::Kind kind, const Chain& chain, uint32_t first,
                                  const KvLayout& layout, const PagedKv& paged,
                                  const AnyArray& table, const Ask& ask, uint16_t layer_begin,
                                  uint16_t layer_end);
std::unique_ptr<Keep> KeepOfBuffers(CoreClient::Kind kind, const std::vector<Chain>& chains,
                                    const nb::sequence& buffers, const KvLayout& layout,
                                    const Ask& ask);
std::unique_ptr<Keep> KeepOfAddresses(CoreClient::Kind kind, const std::vector<Chain>& chains,
                                      const AnyArray& addresses, const AnyArray& sizes,
                                      const KvLayout& layout, const Ask& ask);

// "OK", "MISS", ...: see tiercel.Status.
const char* StatusName(const BlockResult& result);
[[noreturn]] void Raise(const Error& error);

void BindLayout(nb::module_& m);
void BindCodec(nb::module_& m);

}  // namespace tiercel::python

#endif  // TIERCEL_CLIENT_PYTHON_SRC_CORE_CLIENT_H_
