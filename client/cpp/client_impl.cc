#include "client/cpp/client_impl.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "client/cpp/pieces.h"

namespace tiercel {
namespace {

constexpr Nanos kSpin = 50 * kMicrosecond;
constexpr Nanos kIdleSleep = 100 * kMillisecond;
constexpr Nanos kBusySleep = 10 * kMillisecond;

Completion FailedCompletion(const Error& error, size_t blocks, bool put) {
  Completion completion;
  completion.status = Fail(error.code, error.message);
  BlockResult result;
  result.status = put ? error.code : Code::kNotFound;
  result.reason = error.code == Code::kResourceExhausted ? MissReason::kBusy : MissReason::kUnknown;
  completion.blocks.assign(blocks, result);
  return completion;
}

}  // namespace

ClientImpl::ClientImpl(Options options, ClientParts parts)
    : options_(std::move(options)),
      parts_(std::move(parts)),
      clock_(options_.clock != nullptr ? *options_.clock : Clock::Monotonic()),
      mailbox_(std::make_shared<Mailbox>(options_.max_tickets * 2 + 4096)),
      engine_(options_, clock_, *this),
      calls_(std::min(std::max(options_.max_tickets, 1u), 1u << 19)),
      merge_(std::make_shared<ViewMerge>()) {
  ready_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  timer_fd_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  TIERCEL_CHECK(ready_fd_ >= 0 && epoll_fd_ >= 0 && timer_fd_ >= 0);
}

ClientImpl::~ClientImpl() {
  {
    MutexLock lock(mutex_);
    shut_ = true;
  }
  StopThreads();
  {
    MutexLock lock(driver_);
    engine_.Drive();
    engine_.Shutdown();
  }
  std::map<std::string, std::shared_ptr<NodeControl>> controls;
  {
    MutexLock lock(controls_mutex_);
    controls.swap(controls_);
  }
  for (auto& [endpoint, control] : controls) control->Shutdown();
  close(ready_fd_);
  close(epoll_fd_);
  close(timer_fd_);
}

void ClientImpl::StopThreads() {
  stop_.store(true);
  {
    MutexLock lock(park_);
    wanted_ = true;
    unpark_.NotifyAll();
  }
  {
    MutexLock lock(control_mutex_);
    control_wake_.NotifyAll();
  }
  [[maybe_unused]] const bool pushed = mailbox_->Push([](Engine&) {});
  if (progress_.joinable()) progress_.join();
  if (control_.joinable()) control_.join();
}

Status ClientImpl::Open(Nanos timeout) {
  {
    MutexLock lock(driver_);
    TIERCEL_TRY(engine_.Open(parts_));
    std::vector<int> fds = engine_.fds();
    fds.push_back(mailbox_->event_fd());
    if (!options_.progress_thread) {  // Then event_fd() is all of it.
      fds.push_back(ready_fd_);
      fds.push_back(timer_fd_);
    }
    for (const int fd : fds) {
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.fd = fd;
      if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
        return Fail(Code::kInternal, fmt::format("cannot watch a transport's descriptor {}", fd));
      }
    }
    if (!options_.view_file.empty()) {
      ViewFile file(options_.view_file);
      TIERCEL_ASSIGN(std::optional<View> view, file.Poll());
      if (view) {
        MutexLock view_lock(mutex_);
        view_ = *view;
      }
    }
  }
  if (options_.view_file.empty()) {
    for (const std::string& endpoint : options_.endpoints) {
      ControlOf(endpoint)->WatchView([mail = mailbox_, merge = merge_, endpoint,
                                      this](const std::string& json) {
        Result<std::optional<View>> merged = merge->Take(endpoint, json);
        if (!merged) {
          LogWarn("client.view_refused", {{"from", endpoint}, {"why", merged.error().ToString()}});
          return;
        }
        if (!*merged) return;
        [[maybe_unused]] const bool pushed =
            mail->Push([this, view = std::move(**merged)](Engine& engine) mutable {
              {
                MutexLock lock(mutex_);
                view_ = view;
              }
              engine.SetView(std::move(view));
            });
      });
    }
  } else {
    RunOnDriver([view = this->view()](Engine& engine) mutable { engine.SetView(std::move(view)); });
  }
  control_ = std::thread([this] { ControlLoop(); });
  const Nanos until = Clock::Monotonic().Now() + timeout;
  bool any = false;
  bool settled = false;
  std::string why;
  while (!(any && settled) && Clock::Monotonic().Now() < until) {
    RunOnDriver([&](Engine& engine) {
      any = engine.any_open();
      settled = engine.settled();
      why = engine.why_not();
    });
    if (!(any && settled)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (settled && !any && Clock::Monotonic().Now() > until - timeout / 2) break;
  }
  if (!any) {
    if (why.empty()) {
      why = "no node answers at";
      for (const std::string& endpoint : options_.endpoints) why += " " + endpoint;
    }
    return Fail(Code::kUnavailable, why + " (is tiercel-server running?)");
  }
  if (options_.progress_thread) {
    progress_ = std::thread([this] { ProgressLoop(); });
  } else {
    Poll(0);
  }
  return OkStatus();
}

std::shared_ptr<NodeControl> ClientImpl::ControlOf(const std::string& endpoint) {
  MutexLock lock(controls_mutex_);
  std::shared_ptr<NodeControl>& control = controls_[endpoint];
  if (control == nullptr) control = parts_.control(endpoint);
  return control;
}

void ClientImpl::ControlLoop() {
  std::unique_ptr<ViewFile> file;
  if (!options_.view_file.empty()) file = std::make_unique<ViewFile>(options_.view_file);
  while (!stop_.load()) {
    std::vector<std::shared_ptr<NodeControl>> controls;
    {
      MutexLock lock(controls_mutex_);
      for (auto& [endpoint, control] : controls_) controls.push_back(control);
    }
    for (auto& control : controls) control->Tick();
    if (file != nullptr) {
      Result<std::optional<View>> changed = file->Poll();
      if (!changed) {
        LogWarn("client.view_refused", {{"why", changed.error().ToString()}});
      } else if (*changed) {
        Status taken = OkStatus();
        if (FormatView(**changed) != FormatView(view())) taken = SetView(std::move(**changed));
        if (!taken) LogWarn("client.view_refused", {{"why", taken.error().ToString()}});
      }
    }
    MutexLock lock(control_mutex_);
    if (!stop_.load()) control_wake_.WaitFor(control_mutex_, std::chrono::milliseconds(100));
  }
}

Status ClientImpl::Check(const Ask& ask, RecordSpec* spec, uint64_t* max_record,
                         uint64_t* charge) const {
  if (ask.count == 0) return Fail(Code::kInvalidArgument, "request: no blocks");
  if (ask.options->deadline <= 0) {
    return Fail(Code::kInvalidArgument, "request: the deadline is not in the future");
  }
  const Scope scope = ask.chains[0].options().scope;
  if (ask.many) {
    if (ask.chains.size() != ask.count) {
      return Fail(Code::kInvalidArgument,
                  fmt::format("request: {} chains for {} blocks", ask.chains.size(), ask.count));
    }
    for (size_t i = 0; i < ask.chains.size(); ++i) {
      if (ask.chains[i].size() != 1) {
        return Fail(Code::kInvalidArgument, fmt::format("request: chain {} has {} blocks, not one",
                                                        i, ask.chains[i].size()));
      }
      if (ask.chains[i].options().scope != scope) {
        return Fail(Code::kInvalidArgument,
                    fmt::format("request: chain {} is of another scope", i));
      }
    }
  } else if (uint64_t{ask.first} + ask.count > ask.chains[0].size()) {
    return Fail(Code::kInvalidArgument,
                fmt::format("request: blocks {} to {} of a chain of {}", ask.first,
                            ask.first + ask.count - 1, ask.chains[0].size()));
  }
  spec->scope = scope;
  *max_record = 0;
  *charge = 0;
  if (ask.kind == Call::Kind::kMatch) return OkStatus();
  spec->layout = *ask.layout;
  const KvLayout& layout = spec->layout;
  if (!layout.opaque()) TIERCEL_TRY(Validate(layout));
  if (ask.whole != 0 && ask.kind == Call::Kind::kPut && !layout.opaque()) {
    const Pieces pieces = PiecesOf(layout);
    spec->layer_begin = static_cast<uint16_t>(pieces.begin(ask.piece));
    spec->layer_end =
        static_cast<uint16_t>(std::min<uint64_t>(pieces.begin(ask.piece + 1), layout.layers));
  }
  for (uint32_t i = 0; i < ask.count; ++i) {
    uint64_t record = 0;
    if (ask.kind == Call::Kind::kGet) {
      const GetSlot& slot = ask.slots[i];
      if (slot.kind != ask.slots[0].kind) {
        return Fail(Code::kInvalidArgument, fmt::format("slot {}: another kind than slot 0", i));
      }
      if (slot.layer_end < slot.layer_begin ||
          (!layout.opaque() && slot.layer_end > layout.layers) ||
          (layout.opaque() && slot.layer_end != 0)) {
        return Fail(Code::kInvalidArgument,
                    fmt::format("slot {}: layers {} to {} of {}", i, slot.layer_begin,
                                slot.layer_end, layout.layers));
      }
      RecordSpec part = *spec;
      part.layer_begin = slot.layer_begin;
      part.layer_end = slot.layer_end;
      const uint64_t raw = RawBytes(part, slot.dst.size());
      switch (slot.kind) {
        case GetSlot::Kind::kBlock:
          if (slot.dst.size() < raw || slot.dst.empty()) {
            return Fail(Code::kInvalidArgument, fmt::format("slot {}: {} bytes for a block of {}",
                                                            i, slot.dst.size(), raw));
          }
          record = MaxRecordBytes(part, slot.dst.size());
          break;
        case GetSlot::Kind::kRecord:
          if (slot.dst.size() < kRecordHeaderBytes) {
            return Fail(Code::kInvalidArgument,
                        fmt::format("slot {}: {} bytes cannot hold a record", i, slot.dst.size()));
          }
          record = slot.dst.size();
          break;
        case GetSlot::Kind::kPages:
          if (layout.opaque() || slot.paged == nullptr) {
            return Fail(Code::kInvalidArgument, fmt::format("slot {}: no pages or no layout", i));
          }
          TIERCEL_TRY(CheckPages(*slot.paged, layout, slot.pages));
          record = MaxRecordBytes(part, 0);
          break;
        case GetSlot::Kind::kInPlace:
          record = layout.opaque() ? 0 : MaxRecordBytes(part, 0);
          break;
      }
      record = std::min(record, kMaxPayloadBytes);
    } else {
      const PutSource& source = ask.sources[i];
      switch (source.kind) {
        case PutSource::Kind::kBlock:
          if (source.src.empty() ||
              (!layout.opaque() && source.src.size() != RawBytes(*spec))) {
            return Fail(Code::kInvalidArgument,
                        fmt::format("source {}: {} bytes, the layout's block has {}", i,
                                    source.src.size(), RawBytes(*spec)));
          }
          break;
        case PutSource::Kind::kRecord:
          if (source.src.size() < kRecordHeaderBytes || source.src.size() > kMaxPayloadBytes) {
            return Fail(
                Code::kInvalidArgument,
                fmt::format("source {}: {} bytes cannot be a record", i, source.src.size()));
          }
          break;
        case PutSource::Kind::kPages:
          if (layout.opaque() || source.paged == nullptr) {
            return Fail(Code::kInvalidArgument, fmt::format("source {}: no pages or no layout", i));
          }
          TIERCEL_TRY(CheckPages(*source.paged, layout, source.pages));
          break;
      }
      record = source.kind == PutSource::Kind::kRecord ? source.src.size()
                                                       : MaxRecordBytes(*spec, source.src.size());
    }
    *max_record = std::max(*max_record, record);
    *charge += record;
  }
  return OkStatus();
}

Result<Ticket> ClientImpl::Submit(const Ask& ask) {
  TIERCEL_TRY(CheckPieces(ask));
  return ask.chains[0].options().pieces > 1 ? SubmitPieces(ask) : SubmitOne(ask);
}

Result<Ticket> ClientImpl::SubmitOne(const Ask& ask) {
  RecordSpec spec;
  uint64_t max_record = 0;
  uint64_t charge = 0;
  TIERCEL_TRY(Check(ask, &spec, &max_record, &charge));
  Call* call = nullptr;
  {
    MutexLock lock(mutex_);
    if (shut_) return Fail(Code::kUnavailable, "the client is shut down");
    if (bytes_in_flight_ > 0 && bytes_in_flight_ + charge > options_.max_bytes_in_flight) {
      return Fail(Code::kResourceExhausted,
                  fmt::format("{} bytes are in flight, at most {}", bytes_in_flight_,
                              options_.max_bytes_in_flight));
    }
    call = calls_.Add();
    if (call == nullptr) {
      return Fail(Code::kResourceExhausted,
                  fmt::format("{} tickets are in flight or not taken", options_.max_tickets));
    }
    bytes_in_flight_ += charge;
    call->completions.clear();
    call->waiters = 0;
    call->announced = false;
    call->finished = false;
    call->answered_as_piece = false;
  }
  call->whole = ask.whole;
  const Ticket ticket = call->id;
  call->kind = ask.kind;
  call->options = *ask.options;
  call->deadline = clock_.Now() + ask.options->deadline;
  call->many = ask.many;
  call->first = ask.many ? 0 : ask.first;
  call->parent = BlockKey{};
  call->keys.clear();
  call->anchors.clear();
  if (ask.many) {
    for (const Chain& chain : ask.chains) {
      call->keys.push_back(chain.key(0, ask.piece));
      call->anchors.push_back(chain.anchor(0));
    }
  } else {
    const Chain& chain = ask.chains[0];
    const auto keys = chain.keys(ask.piece).subspan(ask.first, ask.count);
    call->keys.assign(keys.begin(), keys.end());
    if (ask.first > 0) call->parent = chain.key(ask.first - 1, ask.piece);
    const uint32_t last = ask.first + ask.count - 1;
    for (uint32_t run = ask.first / kBlocksPerRun; run <= last / kBlocksPerRun; ++run) {
      call->anchors.push_back(chain.anchor(run * kBlocksPerRun));
    }
  }
  call->slots.assign(ask.slots.begin(), ask.slots.end());
  call->sources.assign(ask.sources.begin(), ask.sources.end());
  call->tags.assign(ask.tags.begin(), ask.tags.end());
  call->spec = std::move(spec);
  call->max_record_bytes = max_record;
  call->charged_bytes = charge;
  if (!mailbox_->Push([call](Engine& engine) { engine.Start(*call); })) {
    MutexLock lock(mutex_);
    bytes_in_flight_ -= charge;
    calls_.Remove(call);
    return Fail(Code::kResourceExhausted, "the client's queue is full");
  }
  Nudge();
  return ticket;
}

// The progress thread stands back only for blocking calls.
void ClientImpl::Nudge() {
  if (blocking_.load(std::memory_order_acquire) != 0 || !parked_.load(std::memory_order_acquire))
    return;
  MutexLock lock(park_);
  wanted_ = true;
  unpark_.NotifyAll();
}

void ClientImpl::CountRefused(const Ask& ask) {
  auto& counters = engine_.counters();
  const auto relaxed = std::memory_order_relaxed;
  if (ask.kind == Call::Kind::kPut) {
    counters.puts.fetch_add(ask.count, relaxed);
    counters.puts_refused.fetch_add(ask.count, relaxed);
  }
}

Result<Ticket> ClientImpl::SubmitMatch(const Chain& chain, const RequestOptions& options) {
  return Submit(
      {Call::Kind::kMatch, {&chain, 1}, false, 0, chain.size(), {}, {}, nullptr, &options});
}
Result<Ticket> ClientImpl::SubmitGet(const Chain& chain, uint32_t first,
                                     std::span<const GetSlot> slots, const KvLayout& layout,
                                     const RequestOptions& options) {
  return Submit({Call::Kind::kGet,
                 {&chain, 1},
                 false,
                 first,
                 static_cast<uint32_t>(slots.size()),
                 slots,
                 {},
                 &layout,
                 &options});
}
Result<Ticket> ClientImpl::SubmitPut(const Chain& chain, uint32_t first,
                                     std::span<const PutSource> sources, const KvLayout& layout,
                                     const RequestOptions& options) {
  const Ask ask{
      Call::Kind::kPut, {&chain, 1}, false,   first, static_cast<uint32_t>(sources.size()), {},
      sources,          &layout,     &options};
  Result<Ticket> ticket = Submit(ask);
  if (!ticket && ticket.error().code == Code::kResourceExhausted) CountRefused(ask);
  return ticket;
}
Result<Ticket> ClientImpl::SubmitGetMany(std::span<const Chain> chains,
                                         std::span<const GetSlot> slots, const KvLayout& layout,
                                         const RequestOptions& options) {
  if (chains.empty()) return Fail(Code::kInvalidArgument, "request: no blocks");
  return Submit({Call::Kind::kGet,
                 chains,
                 true,
                 0,
                 static_cast<uint32_t>(slots.size()),
                 slots,
                 {},
                 &layout,
                 &options});
}
Result<Ticket> ClientImpl::SubmitPutMany(std::span<const Chain> chains,
                                         std::span<const PutSource> sources, const KvLayout& layout,
                                         const RequestOptions& options) {
  if (chains.empty()) return Fail(Code::kInvalidArgument, "request: no blocks");
  const Ask ask{Call::Kind::kPut, chains,  true,    0, static_cast<uint32_t>(sources.size()), {},
                sources,          &layout, &options};
  Result<Ticket> ticket = Submit(ask);
  if (!ticket && ticket.error().code == Code::kResourceExhausted) CountRefused(ask);
  return ticket;
}

Completion ClientImpl::SubmitAndWait(const Ask& ask) {
  blocking_.fetch_add(1);
  const Result<Ticket> ticket = Submit(ask);
  Completion completion;
  if (ticket) {
    completion = Wait(*ticket);
  } else {
    completion = FailedCompletion(ticket.error(), ask.count, ask.kind == Call::Kind::kPut);
    if (ask.kind == Call::Kind::kPut && ticket.error().code == Code::kResourceExhausted)
      CountRefused(ask);
  }
  blocking_.fetch_sub(1);
  return completion;
}

Completion ClientImpl::Match(const Chain& chain, const RequestOptions& options) {
  return SubmitAndWait(
      {Call::Kind::kMatch, {&chain, 1}, false, 0, chain.size(), {}, {}, nullptr, &options});
}
Completion ClientImpl::Get(const Chain& chain, uint32_t first, std::span<const GetSlot> slots,
                           const KvLayout& layout, const RequestOptions& options) {
  return SubmitAndWait({Call::Kind::kGet,
                        {&chain, 1},
                        false,
                        first,
                        static_cast<uint32_t>(slots.size()),
                        slots,
                        {},
                        &layout,
                        &options});
}
Completion ClientImpl::Put(const Chain& chain, uint32_t first, std::span<const PutSource> sources,
                           const KvLayout& layout, const RequestOptions& options) {
  return SubmitAndWait({Call::Kind::kPut,
                        {&chain, 1},
                        false,
                        first,
                        static_cast<uint32_t>(sources.size()),
                        {},
                        sources,
                        &layout,
                        &options});
}

void ClientImpl::Cancel(Ticket ticket) {
  std::vector<uint64_t> tickets = {ticket};
  {
    MutexLock lock(mutex_);
    const Call* call = calls_.Find(ticket);
    if (call != nullptr && !call->pieces.empty()) tickets = call->pieces;
  }
  [[maybe_unused]] const bool pushed =
      mailbox_->Push([tickets = std::move(tickets)](Engine& engine) {
        for (const uint64_t one : tickets) engine.Cancel(one);
      });
  Nudge();
}

void ClientImpl::Finished(Call& call, Completion completion) {
  MutexLock lock(mutex_);
  if (call.completions.empty() && call.charged_bytes > 0) {
    bytes_in_flight_ -= call.charged_bytes;
    call.charged_bytes = 0;
  }
  if (call.whole != 0) return PieceFinished(call, std::move(completion));
  Announce(call, std::move(completion));
}

void ClientImpl::Announce(Call& call, Completion completion) {
  call.completions.push_back(std::move(completion));
  if (call.waiters > 0) {
    if (sleepers_ > 0) finished_.NotifyAll();
    return;
  }
  if (call.announced) return;
  call.announced = true;
  ready_.push_back(call.id);
  if (signalled_) return;
  signalled_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = write(ready_fd_, &one, sizeof(one));
}

bool ClientImpl::TakeInto(Call& call, Completion* out) {
  if (call.completions.empty()) return false;
  *out = std::move(call.completions.front());
  call.completions.pop_front();
  if (out->released) calls_.Remove(&call);
  return true;
}

std::vector<Completion> ClientImpl::Poll(size_t max) {
  if (!options_.progress_thread && driver_.TryLock()) {
    for (int i = 0; i < 64 && engine_.Drive() > 0; ++i) {
    }
    // The descriptor must be readable when there is more to do.
    if (!engine_.Arm()) {
      [[maybe_unused]] const bool pushed = mailbox_->Push([](Engine&) {});
    }
    ArmTimer();
    driver_.Unlock();
  }
  std::vector<Completion> taken;
  MutexLock lock(mutex_);
  while (taken.size() < max && !ready_.empty()) {
    Call* call = calls_.Find(ready_.front());
    if (call == nullptr) {  // A Wait took it.
      ready_.pop_front();
      continue;
    }
    Completion completion;
    if (!TakeInto(*call, &completion)) {
      call->announced = false;
      ready_.pop_front();
      continue;
    }
    if (!completion.released && call->completions.empty()) {
      call->announced = false;
      ready_.pop_front();
    } else if (completion.released) {
      ready_.pop_front();
    }
    taken.push_back(std::move(completion));
  }
  if (ready_.empty() && signalled_) {
    uint64_t ignored = 0;
    [[maybe_unused]] const auto got = read(ready_fd_, &ignored, sizeof(ignored));
    signalled_ = false;
  }
  return taken;
}

int ClientImpl::event_fd() const { return options_.progress_thread ? ready_fd_ : epoll_fd_; }

void ClientImpl::ArmTimer() {
  const Nanos in = std::max<Nanos>(engine_.next_timer() - clock_.Now(), 1);
  itimerspec when{};
  when.it_value.tv_sec = in / kSecond;
  when.it_value.tv_nsec = in % kSecond;
  timerfd_settime(timer_fd_, 0, &when, nullptr);
}

// With driver_ held and the engine armed.
void ClientImpl::Sleep(Nanos at_most) {
  const Nanos in = std::min(engine_.next_timer() - clock_.Now(), at_most);
  if (in <= 0) return;
  timespec timeout{};
  timeout.tv_sec = in / kSecond;
  timeout.tv_nsec = in % kSecond;
  epoll_event events[8];
  epoll_pwait2(epoll_fd_, events, 8, &timeout, nullptr);
}

template <class Done>
void ClientImpl::DriveUntil(Done&& done) {
  blocking_.fetch_add(1);
  blocking_calls_.fetch_add(1, std::memory_order_relaxed);
  while (!done()) {
    if (driver_.TryLock()) {
      Nanos quiet_since = clock_.Now();
      while (!done()) {
        if (engine_.Drive() > 0) {
          quiet_since = clock_.Now();
          continue;
        }
        if (clock_.Now() - quiet_since < kSpin) {
          __builtin_ia32_pause();
          continue;
        }
        if (engine_.Arm() && !done()) Sleep(kBusySleep);
      }
      driver_.Unlock();
      MutexLock lock(mutex_);
      if (sleepers_ > 0) finished_.NotifyAll();  // One of them drives on.
      break;
    }
    MutexLock lock(mutex_);
    ++sleepers_;
    finished_.WaitFor(mutex_, std::chrono::microseconds(500));
    --sleepers_;
  }
  if (blocking_.fetch_sub(1) == 1) {
    bool more = false;
    {
      MutexLock lock(mutex_);
      more = calls_.live() > 0;
    }
    if (more) Nudge();
  }
}

void ClientImpl::RunOnDriver(Command command) const {
  auto* self = const_cast<ClientImpl*>(this);
  std::atomic<bool> ran{false};
  while (!self->mailbox_->Push([&](Engine& engine) {
    command(engine);
    ran.store(true, std::memory_order_release);
  })) {
    std::this_thread::yield();
  }
  self->DriveUntil([&] { return ran.load(std::memory_order_acquire); });
}

Completion ClientImpl::Wait(Ticket ticket) {
  Call* call = nullptr;
  Completion completion;
  {
    MutexLock lock(mutex_);
    call = calls_.Find(ticket);
    if (call == nullptr) {
      completion.ticket = ticket;
      completion.status =
          Fail(Code::kInvalidArgument, fmt::format("no ticket {} is alive", ticket));
      return completion;
    }
    ++call->waiters;
  }
  bool gone = false;
  DriveUntil([&] {
    MutexLock lock(mutex_);
    if (calls_.Find(ticket) != call) return gone = true;
    return !call->completions.empty();
  });
  MutexLock lock(mutex_);
  if (gone || calls_.Find(ticket) != call) {
    completion.ticket = ticket;
    completion.status =
        Fail(Code::kInvalidArgument, fmt::format("ticket {} was taken elsewhere", ticket));
    return completion;
  }
  --call->waiters;
  if (!TakeInto(*call, &completion)) {
    completion.ticket = ticket;
    completion.status =
        Fail(Code::kInvalidArgument, fmt::format("ticket {} was taken elsewhere", ticket));
  }
  return completion;
}

void ClientImpl::ProgressLoop() {
  uint64_t seen = 0;
  while (!stop_.load(std::memory_order_acquire)) {
    const uint64_t calls = blocking_calls_.load(std::memory_order_relaxed);
    const bool stand_back = blocking_.load(std::memory_order_acquire) != 0 || calls != seen;
    seen = calls;
    if (stand_back || !driver_.TryLock()) {
      parked_.store(true, std::memory_order_release);
      MutexLock lock(park_);
      if (!wanted_) unpark_.WaitFor(park_, std::chrono::milliseconds(1));
      parked_.store(false, std::memory_order_release);
      if (wanted_) seen = blocking_calls_.load(std::memory_order_relaxed);
      wanted_ = false;
      continue;
    }
    Nanos quiet_since = clock_.Now();
    bool armed = false;
    while (!stop_.load(std::memory_order_acquire) &&
           blocking_.load(std::memory_order_acquire) == 0) {
      if (engine_.Drive() > 0) {
        quiet_since = clock_.Now();
      } else if (clock_.Now() - quiet_since < kSpin) {
        __builtin_ia32_pause();
      } else if (engine_.Arm()) {
        armed = true;
        break;
      }
    }
    const bool busy = engine_.live_ops() > 0;
    const Nanos in = std::min(engine_.next_timer() - clock_.Now(), busy ? kBusySleep : kIdleSleep);
    driver_.Unlock();
    // Without the lock: a blocking call may take over at once, and its first Drive disarms us.
    if (armed && in > 0) {
      timespec timeout{};
      timeout.tv_sec = in / kSecond;
      timeout.tv_nsec = in % kSecond;
      epoll_event events[8];
      epoll_pwait2(epoll_fd_, events, 8, &timeout, nullptr);
    }
  }
}

Status ClientImpl::RegisterMemory(MutableByteSpan memory) {
  if (memory.empty()) return Fail(Code::kInvalidArgument, "register: no memory");
  Status status = OkStatus();
  RunOnDriver([&](Engine& engine) { status = engine.AddMemory(memory); });
  return status;
}

void ClientImpl::UnregisterMemory(MutableByteSpan memory) {
  RunOnDriver([&](Engine& engine) { engine.RemoveMemory(memory); });
}

Status ClientImpl::SetView(View view) {
  TIERCEL_TRY(Validate(view));
  {
    MutexLock lock(mutex_);
    if (view.epoch < view_.epoch ||
        (view.epoch == view_.epoch && FormatView(view) != FormatView(view_))) {
      return Fail(Code::kFailedPrecondition,
                  fmt::format("view: epoch {} does not follow {}", view.epoch, view_.epoch));
    }
    if (view.epoch == view_.epoch) return OkStatus();
    view_ = view;
  }
  RunOnDriver([&](Engine& engine) { engine.SetView(std::move(view)); });
  return OkStatus();
}

View ClientImpl::view() const {
  MutexLock lock(mutex_);
  return view_;
}

}  // namespace tiercel
