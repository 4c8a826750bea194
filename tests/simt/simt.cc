#include "tests/simt/simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"

namespace tiercel::simt {
namespace {

constexpr size_t kStack = 64 << 10;

// swapcontext asks the kernel for the signal mask at each switch. Once a fiber has begun, a jump to where it
// left off does as well; but AddressSanitizer takes such jumps for returns.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(TIERCEL_SIMT_SWAP)
constexpr bool kJumps = false;
#else
constexpr bool kJumps = true;
#endif

struct Warp {
  uint32_t live = 0;
  uint32_t arrived = 0;
  uint64_t given[kWarp] = {};
  uint64_t taken[kWarp] = {};  // What the last operation saw.
  uint64_t turn = 0;
  uint32_t site = 0;  // Where the operation stands that lanes have arrived at.
};

struct Fiber {
  ucontext_t context{};
  std::byte* stack = nullptr;
  Place thread;
  uint32_t number = 0;
  bool begun = false;
  bool done = false;
  jmp_buf here;
};

struct Run {
  Place grid, size, block;
  const std::function<void()>* kernel = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<std::byte> shared;
  uint32_t live = 0, at_barrier = 0;
  uint64_t barrier_turn = 0;
  uint64_t progress = 0;  // Grows with whatever lets another fiber go on.
  Fiber* running = nullptr;
  ucontext_t scheduler{};
  jmp_buf scheduler_here;
};

thread_local Run* run = nullptr;
thread_local SplitMix64 order(0);
thread_local bool shuffled = false;

// 0, 1, .. in the order that fibers and blocks take.
std::vector<uint32_t> Order(uint32_t count) {
  std::vector<uint32_t> out(count);
  for (uint32_t i = 0; i < count; ++i) out[i] = i;
  for (uint32_t i = count; shuffled && i > 1; --i) std::swap(out[i - 1], out[order.Below(i)]);
  return out;
}

Run& Now() {
  TIERCEL_CHECK(run != nullptr && run->running != nullptr);
  return *run;
}
Warp& MyWarp() { return Now().warps[Now().running->number / kWarp]; }
uint32_t MyLane() { return Now().running->number % kWarp; }

void Yield() {
  Fiber& me = *Now().running;
  if (!kJumps) {
    swapcontext(&me.context, &run->scheduler);
  } else if (_setjmp(me.here) == 0) {
    _longjmp(run->scheduler_here, 1);
  }
}

void Resume(Run& mine, Fiber& fiber) {
  mine.running = &fiber;
  if (!kJumps) {
    swapcontext(&mine.scheduler, &fiber.context);
  } else if (_setjmp(mine.scheduler_here) == 0) {
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }
}

void Body() {
  (*run->kernel)();
  Fiber& me = *run->running;
  me.done = true;
  --run->live;
  MyWarp().live &= ~(1u << MyLane());
  ++run->progress;
  Yield();
}

// Every live lane gives a value; each then sees all of them. They come from one place in the kernel.
const uint64_t* Together(uint64_t value, uint32_t site) {
  Warp& warp = MyWarp();
  const uint64_t turn = warp.turn;
  if (warp.arrived == 0) warp.site = site;
  TIERCEL_CHECK(warp.site == site);  // Else lanes have diverged.
  warp.given[MyLane()] = value;
  warp.arrived |= 1u << MyLane();
  while (warp.turn == turn) {
    if ((warp.arrived & warp.live) == warp.live) {
      for (uint32_t lane = 0; lane < kWarp; ++lane) warp.taken[lane] = warp.given[lane];
      warp.arrived = 0;
      ++warp.turn;
      ++run->progress;
      break;
    }
    Yield();
  }
  return warp.taken;
}

// Starts a block's fibers and goes round them until all have returned.
void RunBlock(Run& mine, Place block, size_t shared_bytes) {
  const Place size = mine.size;
  const uint32_t threads = size.x * size.y;
  mine.block = block;
  mine.shared.assign(shared_bytes, std::byte{0xcd});  // Nobody may count on zeros.
  mine.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  mine.live = threads;
  mine.at_barrier = 0;
  for (uint32_t i = 0; i < threads; ++i) {
    Fiber& fiber = mine.fibers[i];
    fiber.thread = {i % size.x, i / size.x};
    fiber.number = i;
    fiber.begun = fiber.done = false;
    mine.warps[i / kWarp].live |= 1u << (i % kWarp);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, Body, 0);
  }
  const std::vector<uint32_t> sequence = Order(threads);
  while (mine.live > 0) {
    const uint64_t before = mine.progress;
    for (const uint32_t i : sequence) {
      if (!mine.fibers[i].done) Resume(mine, mine.fibers[i]);
    }
    TIERCEL_CHECK(mine.progress != before);  // Else all wait for one that never comes.
  }
  mine.running = nullptr;
}

}  // namespace

Place Thread() { return Now().running->thread; }
Place Block() { return Now().block; }
Place BlockSize() { return Now().size; }
Place GridSize() { return Now().grid; }
std::byte* Shared() { return Now().shared.data(); }

void SyncThreads() {
  Run& r = Now();
  const uint64_t turn = r.barrier_turn;
  ++r.at_barrier;
  while (r.barrier_turn == turn) {
    if (r.at_barrier >= r.live) {
      r.at_barrier = 0;
      ++r.barrier_turn;
      ++r.progress;
      break;
    }
    Yield();
  }
}

void SyncWarp(uint32_t site) { Together(0, site); }

uint32_t Ballot(bool what, uint32_t site) {
  const uint32_t live = MyWarp().live;
  const uint64_t* all = Together(what ? 1 : 0, site);
  uint32_t mask = 0;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if ((live >> lane & 1u) != 0 && all[lane] != 0) mask |= 1u << lane;
  }
  return mask;
}

uint64_t Shuffle(uint64_t value, uint32_t from_lane, uint32_t site) {
  const uint64_t* all = Together(value, site);
  TIERCEL_CHECK(from_lane < kWarp);
  return all[from_lane];
}

uint64_t AtomicAdd(uint64_t* at, uint64_t value) {
  const uint64_t before = *at;
  *at += value;
  return before;
}

void Shuffled(uint64_t seed) {
  order = SplitMix64(seed);
  shuffled = seed != 0;
}

void Launch(Place grid, Place block, size_t shared_bytes, const std::function<void()>& kernel) {
  TIERCEL_CHECK(run == nullptr && block.x > 0 && block.y > 0);
  Run mine;
  mine.grid = grid;
  mine.size = block;
  mine.kernel = &kernel;
  const uint32_t threads = block.x * block.y;
  mine.fibers.resize(threads);
  thread_local std::vector<std::unique_ptr<std::byte[]>> stacks;  // Kept from launch to launch.
  while (stacks.size() < threads) stacks.emplace_back(new std::byte[kStack]);
  for (uint32_t i = 0; i < threads; ++i) mine.fibers[i].stack = stacks[i].get();
  run = &mine;
  for (const uint32_t i : Order(grid.x * grid.y)) RunBlock(mine, {i % grid.x, i / grid.x}, shared_bytes);
  run = nullptr;
}

}  // namespace tiercel::simt
