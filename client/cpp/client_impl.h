// ClientImpl puts threads around the engine.
//
// One thread at a time drives, under driver_: a thread in a blocking call, so that it takes its
// answer with its own hands; else the progress thread, or whoever calls Poll. The progress thread
// stands back while blocking calls come, and looks every millisecond whether it is wanted again.
//
//   submitter --mailbox--> driver (Engine::Drive) --Finished--> ready queue, event fd --> Poll /
//   Wait
//
// Threads: driver_ guards the engine, mutex_ tickets and completions; mutex_ may be taken under
// driver_, never the other way.
#ifndef TIERCEL_CLIENT_CPP_CLIENT_IMPL_H_
#define TIERCEL_CLIENT_CPP_CLIENT_IMPL_H_

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "client/cpp/client.h"
#include "client/cpp/control.h"
#include "client/cpp/engine.h"
#include "client/cpp/view_source.h"

namespace tiercel {

class ClientImpl final : public Client, private Engine::Host {
 public:
  ClientImpl(Options options, ClientParts parts);
  ~ClientImpl() override;
  // Waits, at most timeout, until the view's nodes are connected or known not to be.
  Status Open(Nanos timeout);

  Result<Ticket> SubmitMatch(const Chain& chain, const RequestOptions& options) override;
  Result<Ticket> SubmitGet(const Chain& chain, uint32_t first, std::span<const GetSlot> slots,
                           const KvLayout& layout, const RequestOptions& options) override;
  Result<Ticket> SubmitPut(const Chain& chain, uint32_t first, std::span<const PutSource> sources,
                           const KvLayout& layout, const RequestOptions& options) override;
  Result<Ticket> SubmitGetMany(std::span<const Chain> chains, std::span<const GetSlot> slots,
                               const KvLayout& layout, const RequestOptions& options) override;
  Result<Ticket> SubmitPutMany(std::span<const Chain> chains, std::span<const PutSource> sources,
                               const KvLayout& layout, const RequestOptions& options) override;
  void Cancel(Ticket ticket) override;
  std::vector<Completion> Poll(size_t max) override;
  int event_fd() const override;
  Completion Wait(Ticket ticket) override;
  Completion Match(const Chain& chain, const RequestOptions& options) override;
  Completion Get(const Chain& chain, uint32_t first, std::span<const GetSlot> slots,
                 const KvLayout& layout, const RequestOptions& options) override;
  Completion Put(const Chain& chain, uint32_t first, std::span<const PutSource> sources,
                 const KvLayout& layout, const RequestOptions& options) override;
  Status RegisterMemory(MutableByteSpan memory) override;
  void UnregisterMemory(MutableByteSpan memory) override;
  Status SetView(View view) override;
  View view() const override;
  std::vector<CodecController::Candidate> ExplainCodecs(const CodecController::Ask& ask) const override;
  std::vector<NodeStatus> Nodes() const override;
  Stats stats() const override;

 private:
  struct Ask {
    Call::Kind kind;
    std::span<const Chain> chains;
    bool many;
    uint32_t first;
    uint32_t count;
    std::span<const GetSlot> slots;
    std::span<const PutSource> sources;
    const KvLayout* layout;
    const RequestOptions* options;
    // Of one piece of a value that has several.
    uint32_t piece = 0;
    uint64_t whole = 0;
    std::span<const uint64_t> tags = {};
  };

  // Engine::Host.
  void Finished(Call& call, Completion completion) override;
  std::shared_ptr<NodeControl> ControlOf(const std::string& endpoint) override;
  std::shared_ptr<Mailbox> mailbox() override { return mailbox_; }

  Status Check(const Ask& ask, RecordSpec* spec, uint64_t* max_record, uint64_t* charge) const;
  Result<Ticket> Submit(const Ask& ask);
  Result<Ticket> SubmitOne(const Ask& ask);
  // client_pieces.cc
  Status CheckPieces(const Ask& ask) const;
  Result<Ticket> SubmitPieces(const Ask& ask);
  void PieceFinished(Call& piece, Completion completion) TIERCEL_REQUIRES(mutex_);
  void GatherPiece(Call& whole, std::span<const BlockResult> blocks, Status status, bool released)
      TIERCEL_REQUIRES(mutex_);
  void AnnounceWhole(Call& whole) TIERCEL_REQUIRES(mutex_);
  void Announce(Call& call, Completion completion) TIERCEL_REQUIRES(mutex_);
  Completion SubmitAndWait(const Ask& ask);
  void CountRefused(const Ask& ask);
  bool TakeInto(Call& call, Completion* out) TIERCEL_REQUIRES(mutex_);
  template <class Done>
  void DriveUntil(Done&& done);
  void RunOnDriver(Command command) const;
  void Sleep(Nanos at_most);
  void ArmTimer();
  void Nudge();
  void ProgressLoop();
  void ControlLoop();
  void StopThreads();

  const Options options_;
  const ClientParts parts_;
  const Clock& clock_;
  const std::shared_ptr<Mailbox> mailbox_;

  mutable Mutex driver_;
  Engine engine_;  // Under driver_, save its counters.

  mutable Mutex mutex_;
  RequestTable<Call> calls_ TIERCEL_GUARDED_BY(mutex_);
  std::deque<uint64_t> ready_ TIERCEL_GUARDED_BY(mutex_);
  bool signalled_ TIERCEL_GUARDED_BY(mutex_) = false;
  bool shut_ TIERCEL_GUARDED_BY(mutex_) = false;
  uint64_t bytes_in_flight_ TIERCEL_GUARDED_BY(mutex_) = 0;
  View view_ TIERCEL_GUARDED_BY(mutex_);
  uint32_t sleepers_ TIERCEL_GUARDED_BY(mutex_) = 0;
  CondVar finished_;

  int ready_fd_ = -1;
  int epoll_fd_ = -1;
  int timer_fd_ = -1;

  std::atomic<uint32_t> blocking_{0};
  std::atomic<uint64_t> blocking_calls_{0};
  std::atomic<bool> parked_{false};
  std::atomic<bool> stop_{false};
  Mutex park_;
  CondVar unpark_;
  bool wanted_ TIERCEL_GUARDED_BY(park_) = false;

  mutable Mutex controls_mutex_;
  std::map<std::string, std::shared_ptr<NodeControl>> controls_ TIERCEL_GUARDED_BY(controls_mutex_);
  std::shared_ptr<ViewMerge> merge_;
  Mutex control_mutex_;
  CondVar control_wake_;

  std::thread progress_;
  std::thread control_;
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_CLIENT_IMPL_H_
