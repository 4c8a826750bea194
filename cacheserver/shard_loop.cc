// A shard's thread: it turns as long as there is work, spins for a moment, then sleeps until something comes.
#include <sys/epoll.h>

#include <algorithm>

#include "base/check.h"
#include "cacheserver/shard.h"

namespace tiercel {

void Shard::SleepUntilWork() {
  bool may_sleep = inbox_.Arm();
  for (const auto& transport : transports_) may_sleep = transport->Arm() && may_sleep;
  if (stack_->ssd() != nullptr) may_sleep = stack_->ssd()->Arm() && may_sleep;
  if (!may_sleep) return;
  // Never longer than this, whatever a descriptor forgets to say.
  const Nanos longest = sessions_.empty() ? 100 * kMillisecond : 40 * kMillisecond;
  Nanos until = clock_.Now() + longest;
  if (!deadlines_.empty()) until = std::min(until, deadlines_.begin()->first);
  if (!hold_expiries_.empty()) until = std::min(until, hold_expiries_.begin()->first);
  until = std::min(until, stack_->next_wakeup());
  const Nanos wait = std::max<Nanos>(0, until - clock_.Now());
  epoll_event events[8];
  (void)epoll_wait(epoll_fd_, events, 8, static_cast<int>((wait + kMillisecond - 1) / kMillisecond));
}

void Shard::RunUntilStopped() {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  TIERCEL_CHECK(epoll_fd_ >= 0);
  const auto watch = [this](int fd) {
    if (fd < 0) return;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    TIERCEL_CHECK(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0);
  };
  watch(inbox_.event_fd());
  for (const auto& transport : transports_) watch(transport->event_fd());
  if (stack_->ssd() != nullptr) watch(stack_->ssd()->event_fd());
  if (stack_->device() != nullptr) watch(stack_->device()->event_fd());
  Nanos last_work = clock_.Now();
  while (!stop_.load(std::memory_order_acquire)) {
    if (RunOnce() > 0) {
      last_work = clock_.Now();
    } else if (clock_.Now() - last_work > options_.spin) {
      SleepUntilWork();
    }
  }
}

}  // namespace tiercel
