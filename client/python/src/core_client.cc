#include "client/python/src/core_client.h"

#include <fmt/format.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <charconv>
#include <cstring>

#include "client/cpp/artifact_store.h"

namespace tiercel::python {

struct CoreClient::Inner {
  std::unique_ptr<Client> client;
  std::mutex mutex;
  std::map<Ticket, std::unique_ptr<Keep>> keeps;

  // Whoever lets go last; Python objects are dropped with the GIL, the client is ended without it.
  ~Inner() {
    if (PyGILState_Check() != 0) {
      nb::gil_scoped_release released;
      client.reset();
    } else {
      client.reset();
    }
    nb::gil_scoped_acquire acquired;
    keeps.clear();
  }
};

void Raise(const Error& error) {
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kFailedPrecondition:
    case Code::kOutOfRange:
      throw nb::value_error(error.message.c_str());
    case Code::kUnavailable:
      throw ClosedError(error.message);
    default:
      throw std::runtime_error(error.ToString());
  }
}

const char* StatusName(const BlockResult& result) {
  switch (result.status) {
    case Code::kOk:
      return "OK";
    case Code::kAlreadyExists:
      return "EXISTS";
    case Code::kNotFound:
      switch (result.reason) {
        case MissReason::kCorrupt:
          return "CORRUPT";
        case MissReason::kDeadline:
          return "TIMEOUT";
        case MissReason::kBusy:
          return "BUSY";
        case MissReason::kBreaker:
          return "UNAVAILABLE";
        default:
          return "MISS";
      }
    case Code::kResourceExhausted:
      return result.reason == MissReason::kBusy ? "BUSY" : "NO_SPACE";
    case Code::kOutOfRange:
      return "NO_SPACE";
    case Code::kDeadlineExceeded:
    case Code::kCancelled:
      return "TIMEOUT";
    case Code::kDataLoss:
      return "CORRUPT";
    case Code::kFailedPrecondition:
      return "NEEDS_ARTIFACT";
    case Code::kPermissionDenied:
    case Code::kInvalidArgument:
      return "REFUSED";
    default:
      return "UNAVAILABLE";
  }
}

RequestOptions OptionsOf(const Ask& ask) {
  RequestOptions options;
  if (!(ask.deadline_s > 0) || ask.deadline_s > 1e6) {
    throw nb::value_error("deadline_s must be positive, in seconds");
  }
  options.deadline = static_cast<Nanos>(ask.deadline_s * 1e9);
  const auto quality = ParseQualityClass(ask.min_class);
  if (!quality) throw nb::value_error(("no quality class '" + ask.min_class + "'").c_str());
  options.min_class = *quality;
  if (ask.prefer_small) options.prefer = *ask.prefer_small ? Prefer::kSmall : Prefer::kGood;
  const auto put_class = ParseQualityClass(ask.put_class);
  if (!put_class) throw nb::value_error(("no quality class '" + ask.put_class + "'").c_str());
  options.put_class = *put_class;
  if (ask.codec != "auto") {
    options.codec = ParseCodecId(ask.codec);
    if (!options.codec) throw nb::value_error(("no codec '" + ask.codec + "'").c_str());
  }
  options.no_touch = ask.no_touch;
  options.want_durable = ask.durable;
  options.hold = ask.hold;
  if (ask.pin_s) {
    if (!(*ask.pin_s >= 0) || *ask.pin_s > 1e7) throw nb::value_error("seconds must be 0 or more, and at most 1e7");
    options.pin = static_cast<Nanos>(*ask.pin_s * 1e9);
  }
  for (const ReuseHint hint :
       {ReuseHint::kUnknown, ReuseHint::kLikely, ReuseHint::kUnlikely, ReuseHint::kDone}) {
    if (Name(hint) == ask.reuse) {
      options.reuse_hint = hint;
      return options;
    }
  }
  throw nb::value_error(("no reuse hint '" + ask.reuse + "'").c_str());
}

HeldBuffer::HeldBuffer(nb::handle object, bool writable) {
  if (TryBuffer(object, writable) || TryArrayInterface(object, writable) ||
      TryDlpack(object, writable)) {
    return;
  }
  throw nb::type_error("expected memory: bytes, bytearray, memoryview, an array, or a tensor with DLPack");
}

HeldBuffer::~HeldBuffer() {
  if (view_.obj != nullptr) PyBuffer_Release(&view_);
}

namespace {

[[noreturn]] void RefuseStrides() {
  throw NotContiguousError("the buffer is not C-contiguous; copy it first");
}

[[noreturn]] void RefuseReadOnly() { throw nb::type_error("the buffer is read-only"); }

}  // namespace

bool HeldBuffer::TryBuffer(nb::handle object, bool writable) {
  if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0) {
    span_ = {static_cast<std::byte*>(view_.buf), static_cast<size_t>(view_.len)};
    return true;
  }
  PyErr_Clear();
  // Said again without asking for contiguity, to tell why.
  Py_buffer any{};
  if (PyObject_GetBuffer(object.ptr(), &any, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();
    return false;
  }
  const bool contiguous = PyBuffer_IsContiguous(&any, 'C') != 0;
  PyBuffer_Release(&any);
  if (!contiguous) RefuseStrides();
  RefuseReadOnly();
}

bool HeldBuffer::TryArrayInterface(nb::handle object, bool writable) {
  nb::object found = nb::getattr(object, "__array_interface__", nb::none());
  nb::dict interface;
  std::string type;
  std::pair<uint64_t, bool> data;  // Address, read-only.
  std::vector<int64_t> shape;
  if (!nb::try_cast(found, interface) || !interface.contains("typestr") ||
      !interface.contains("shape") || !interface.contains("data") ||
      !nb::try_cast(nb::object(interface["typestr"]), type) || type.size() < 3 ||
      !nb::try_cast(nb::object(interface["data"]), data) ||
      !nb::try_cast(nb::object(interface["shape"]), shape)) {
    return false;
  }
  int64_t item = 0;
  const char* end = type.data() + type.size();
  if (std::from_chars(type.data() + 2, end, item).ptr != end || item < 1) return false;
  if (type[1] == 'O') throw nb::type_error("the array holds Python objects");
  std::vector<int64_t> strides;
  if (interface.contains("strides") && !interface["strides"].is_none() &&
      (!nb::try_cast(nb::object(interface["strides"]), strides) || strides.size() != shape.size())) {
    return false;
  }
  int64_t bytes = item;
  for (size_t i = shape.size(); i-- > 0;) {
    if (!strides.empty() && shape[i] > 1 && strides[i] != bytes) RefuseStrides();
    if (__builtin_mul_overflow(bytes, shape[i], &bytes) || bytes < 0) return false;
  }
  if (writable && data.second) RefuseReadOnly();
  owner_ = nb::borrow(object);
  span_ = {reinterpret_cast<std::byte*>(data.first), static_cast<size_t>(bytes)};
  return true;
}

bool HeldBuffer::TryDlpack(nb::handle object, bool writable) {
  if (!nb::try_cast(object, tensor_, false)) return false;
  if (tensor_.device_type() != nb::device::cpu::value) {
    throw nb::type_error("the tensor is not in host memory");
  }
  int64_t expected = 1;
  for (size_t i = tensor_.ndim(); i-- > 0;) {
    if (tensor_.shape(i) > 1 && tensor_.stride(i) != expected) RefuseStrides();
    expected *= static_cast<int64_t>(tensor_.shape(i));
  }
  if (writable) {
    nb::ndarray<> same;
    if (!nb::try_cast(object, same, false)) RefuseReadOnly();
  }
  span_ = {static_cast<std::byte*>(const_cast<void*>(tensor_.data())), tensor_.nbytes()};
  return true;
}

CoreClient::CoreClient(const Client::Options& options) {
  auto connected = [&] {
    nb::gil_scoped_release released;
    return Client::Connect(options);
  }();
  if (!connected) {
    if (connected.error().code == Code::kInvalidArgument) Raise(connected.error());
    throw ConnectError(connected.error().message);
  }
  inner_ = std::make_shared<Inner>();
  inner_->client = std::move(*connected);
}

std::shared_ptr<CoreClient::Inner> CoreClient::inner() const {
  std::lock_guard lock(mutex_);
  if (inner_ == nullptr) throw ClosedError("the client is closed");
  return inner_;
}

bool CoreClient::closed() const {
  std::lock_guard lock(mutex_);
  return inner_ == nullptr;
}

void CoreClient::Close() {
  std::shared_ptr<Inner> last;
  {
    std::lock_guard lock(mutex_);
    last.swap(inner_);
  }
}

Ticket CoreClient::Submit(Kind kind, std::unique_ptr<Keep> keep) {
  const std::shared_ptr<Inner> inner = this->inner();
  Result<Ticket> ticket = Ticket{0};
  {
    nb::gil_scoped_release released;
    std::lock_guard lock(inner->mutex);  // A poll that is quicker waits for the keep to be parked.
    Client& client = *inner->client;
    const Keep& k = *keep;
    switch (kind) {
      case Kind::kMatch:
        ticket = client.SubmitMatch(k.chains[0], k.options);
        break;
      case Kind::kGet:
        ticket = k.many ? client.SubmitGetMany(k.chains, k.slots, k.layout, k.options)
                        : client.SubmitGet(k.chains[0], k.first, k.slots, k.layout, k.options);
        break;
      case Kind::kPut:
        ticket = k.many ? client.SubmitPutMany(k.chains, k.sources, k.layout, k.options)
                        : client.SubmitPut(k.chains[0], k.first, k.sources, k.layout, k.options);
        break;
    }
    if (ticket) inner->keeps.emplace(*ticket, std::move(keep));
  }
  if (ticket) return *ticket;
  if (ticket.error().code == Code::kResourceExhausted) return 0;
  Raise(ticket.error());
}

Completion CoreClient::Run(Kind kind, std::unique_ptr<Keep> keep) {
  const std::shared_ptr<Inner> inner = this->inner();
  Completion done;
  {
    nb::gil_scoped_release released;
    Client& client = *inner->client;
    const Keep& k = *keep;
    if (!k.many) {
      done = kind == Kind::kMatch ? client.Match(k.chains[0], k.options)
             : kind == Kind::kGet
                 ? client.Get(k.chains[0], k.first, k.slots, k.layout, k.options)
                 : client.Put(k.chains[0], k.first, k.sources, k.layout, k.options);
    } else {
      Result<Ticket> ticket =
          kind == Kind::kGet ? client.SubmitGetMany(k.chains, k.slots, k.layout, k.options)
                             : client.SubmitPutMany(k.chains, k.sources, k.layout, k.options);
      if (ticket) {
        done = client.Wait(*ticket);
      } else {
        done.status = tl::unexpected<Error>(ticket.error());
        BlockResult refused;
        refused.status = kind == Kind::kPut ? ticket.error().code : Code::kNotFound;
        refused.reason = MissReason::kBusy;
        done.blocks.assign(k.chains.size(), refused);
      }
    }
    while (!done.released) {  // The memory is the caller's again only then.
      Completion freed = client.Wait(done.ticket);
      if (!freed.status && freed.status.error().code == Code::kInvalidArgument) break;
      done.released = freed.released;
    }
  }
  if (!done.status && done.status.error().code != Code::kResourceExhausted) {
    Raise(done.status.error());
  }
  return done;
}

std::vector<Completion> CoreClient::Poll(size_t max) {
  const std::shared_ptr<Inner> inner = this->inner();
  std::vector<Completion> taken;
  std::vector<std::unique_ptr<Keep>> over;
  {
    nb::gil_scoped_release released;
    taken = inner->client->Poll(max);
    std::lock_guard lock(inner->mutex);
    for (const Completion& completion : taken) {
      if (!completion.released) continue;
      const auto it = inner->keeps.find(completion.ticket);
      if (it == inner->keeps.end()) continue;
      over.push_back(std::move(it->second));
      inner->keeps.erase(it);
    }
  }
  return taken;  // With the GIL, `over` is dropped.
}

Completion CoreClient::Wait(Ticket ticket) {
  const std::shared_ptr<Inner> inner = this->inner();
  Completion done;
  std::unique_ptr<Keep> over;
  {
    nb::gil_scoped_release released;
    done = inner->client->Wait(ticket);
    if (done.released && done.status) {
      std::lock_guard lock(inner->mutex);
      const auto it = inner->keeps.find(ticket);
      if (it != inner->keeps.end()) {
        over = std::move(it->second);
        inner->keeps.erase(it);
      }
    }
  }
  if (!done.status && done.blocks.empty()) Raise(done.status.error());
  return done;
}

void CoreClient::Cancel(Ticket ticket) {
  const std::shared_ptr<Inner> inner = this->inner();
  nb::gil_scoped_release released;
  inner->client->Cancel(ticket);
}

int CoreClient::event_fd() const { return inner()->client->event_fd(); }

void CoreClient::Register(uint64_t address, uint64_t bytes) {
  const std::shared_ptr<Inner> inner = this->inner();
  Status status = OkStatus();
  {
    nb::gil_scoped_release released;
    status = inner->client->RegisterMemory({reinterpret_cast<std::byte*>(address), bytes});
  }
  if (!status) Raise(status.error());
}

void CoreClient::Unregister(uint64_t address, uint64_t bytes) {
  const std::shared_ptr<Inner> inner = this->inner();
  nb::gil_scoped_release released;
  inner->client->UnregisterMemory({reinterpret_cast<std::byte*>(address), bytes});
}

void CoreClient::StoreArtifact(const HeldArtifact& held, const std::string& name_space, double deadline_s) {
  const std::shared_ptr<Inner> inner = this->inner();
  Ask ask;
  ask.deadline_s = deadline_s;
  const RequestOptions options = OptionsOf(ask);
  Status stored;
  {
    nb::gil_scoped_release released;
    stored = tiercel::StoreArtifact(*inner->client, name_space, *held.artifact, options);
  }
  if (!stored) throw std::runtime_error(stored.error().ToString());
}

HeldArtifact CoreClient::FetchArtifact(uint64_t id, const std::string& name_space, double deadline_s) {
  const std::shared_ptr<Inner> inner = this->inner();
  Ask ask;
  ask.deadline_s = deadline_s;
  const RequestOptions options = OptionsOf(ask);
  Result<std::shared_ptr<const Artifact>> artifact = FindArtifact(id);
  if (*artifact == nullptr) {
    nb::gil_scoped_release released;
    artifact = tiercel::FetchArtifact(*inner->client, name_space, id, options);
    if (artifact) {
      if (const Status used = UseArtifact(*artifact); !used) artifact = tl::unexpected<Error>(used.error());
    }
  }
  if (!artifact) {
    if (artifact.error().code == Code::kNotFound) throw nb::key_error(artifact.error().message.c_str());
    throw std::runtime_error(artifact.error().ToString());
  }
  return {*artifact};
}

nb::list CoreClient::ExplainCodecs(const nb::bytes& scope, const KvLayout& layout, const std::string& worst, uint32_t blocks) const {
  const std::shared_ptr<Inner> inner = this->inner();
  const auto quality = ParseQualityClass(worst);
  if (!quality) throw nb::value_error(("no quality class '" + worst + "'").c_str());
  CodecController::Ask ask;
  if (scope.size() != ask.scope.bytes.size()) throw nb::value_error("a scope has 16 bytes");
  std::memcpy(ask.scope.bytes.data(), scope.c_str(), scope.size());
  ask.dtype = layout.dtype;
  ask.worst = *quality;
  ask.artifact = true;
  ask.raw_bytes = layout.block_bytes();
  ask.blocks = blocks;
  std::vector<CodecController::Candidate> candidates;
  {
    nb::gil_scoped_release released;
    candidates = inner->client->ExplainCodecs(ask);
  }
  const auto text = [](std::string_view view) { return nb::str(view.data(), view.size()); };
  nb::list out;
  for (const CodecController::Candidate& from : candidates) {
    nb::dict one;
    one["codec"] = text(Name(from.codec));
    one["quality"] = text(Name(from.quality));
    one["record_bytes"] = from.record_bytes;
    one["encode_s"] = from.encode / 1e9;
    one["send_s"] = from.send / 1e9;
    one["receive_s"] = from.receive / 1e9;
    one["decode_s"] = from.decode / 1e9;
    one["storage_s"] = from.storage / 1e9;
    one["cost_s"] = from.total / 1e9;
    one["measured"] = from.measured;
    out.append(one);
  }
  return out;
}

nb::dict CoreClient::Stats() const {
  const Client::Stats stats = inner()->client->stats();
  nb::dict misses;
  for (int i = 1; i < kMissReasons; ++i) {
    const std::string_view name = Name(static_cast<MissReason>(i));
    misses[nb::str(name.data(), name.size())] = stats.misses[static_cast<size_t>(i)];
  }
  nb::dict out;
  out["blocks_asked"] = stats.blocks_asked;
  out["blocks_served"] = stats.blocks_served;
  out["misses"] = misses;
  out["puts"] = stats.puts;
  out["puts_stored"] = stats.puts_stored;
  out["puts_refused"] = stats.puts_refused;
  out["raw_bytes_put"] = stats.raw_bytes_put;
  out["record_bytes_put"] = stats.record_bytes_put;
  out["raw_bytes_got"] = stats.raw_bytes_got;
  out["record_bytes_got"] = stats.record_bytes_got;
  out["corrupt"] = stats.corrupt;
  out["late_releases"] = stats.late_releases;
  nb::dict codecs;
  for (size_t i = 0; i < kCodecs; ++i) {
    const std::string_view name = Name(static_cast<CodecId>(i));
    if (stats.puts_by_codec[i] > 0) codecs[nb::str(name.data(), name.size())] = stats.puts_by_codec[i];
  }
  out["puts_by_codec"] = codecs;
  return out;
}

nb::list CoreClient::Nodes() const {
  const std::shared_ptr<Inner> inner = this->inner();
  std::vector<Client::NodeStatus> nodes;
  {
    nb::gil_scoped_release released;
    nodes = inner->client->Nodes();
  }
  nb::list out;
  for (const Client::NodeStatus& node : nodes) {
    nb::dict one;
    one["node_id"] = node.node_id;
    one["endpoint"] = node.endpoint;
    one["connected"] = node.connected;
    one["breaker_open"] = node.breaker_open;
    one["transports"] = nb::cast(node.transports);
    one["last_error"] = node.last_error;
    out.append(one);
  }
  return out;
}

std::string CoreClient::View() const {
  const std::shared_ptr<Inner> inner = this->inner();
  return FormatView(inner->client->view());
}

void CoreClient::SetView(const std::string& json) {
  const std::shared_ptr<Inner> inner = this->inner();
  Result<tiercel::View> view = ParseView(json);
  if (!view) Raise(view.error());
  Status status = OkStatus();
  {
    nb::gil_scoped_release released;
    status = inner->client->SetView(std::move(*view));
  }
  if (!status) Raise(status.error());
}

}  // namespace tiercel::python
