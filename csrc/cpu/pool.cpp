#include "cpu/pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace we::cpu {
namespace {

// One evolution has three parallel parts, some microseconds apart; waking a sleeping thread takes 50.
constexpr std::chrono::microseconds kSpin{100};
constexpr int kPausesPerClock = 64;
constexpr int kMaxThreads = 1024;
constexpr std::uint32_t kNoTask = 0xFFFFFFFF;  // no job has that many

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that wait for jobs. A job is a number of tasks; its generation and the next task to take are one atomic word,
// so that a thread that comes late can take nothing from a job that is over.
class Pool {
 public:
  void run(int threads, std::uint32_t count, Task task, void* context) {
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock || threads < 2 || count < 2) {
      for (std::uint32_t i = 0; i < count; ++i) task(context, i);
      return;
    }
    start_workers(threads - 1);
    // Between two jobs the state belongs to neither: a thread that still holds the last job's state and reads these
    // fields anew must not be able to take a task with it.
    const std::uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | kNoTask);
    task_.store(task, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    helpers_.store(threads - 1, std::memory_order_release);
    done_.store(0, std::memory_order_release);
    state_.store((generation + 1) << 32);
    if (sleepers_.load() > 0) {
      {
        const std::lock_guard guard(sleep_);
      }
      wake_.notify_all();
    }
    take_tasks(state_.load());
    for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
      if (spins < 10000) pause();
      else std::this_thread::yield();
    }
  }

 private:
  void start_workers(int wanted) {
    if (workers_ >= wanted) return;
    // Signals are for the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; workers_ < wanted; ++workers_) {
        std::thread(&Pool::work, this, workers_, state_.load()).detach();
      }
    } catch (const std::system_error&) {
      // Too many threads in this process: those there are do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void work(int worker, std::uint64_t seen) {
    for (;;) {
      seen = wait_for_job(seen);
      if (worker < helpers_.load(std::memory_order_relaxed)) take_tasks(seen);
    }
  }

  bool is_new(std::uint64_t state, std::uint64_t seen) const { return state >> 32 != seen >> 32; }

  std::uint64_t wait_for_job(std::uint64_t seen) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerClock; ++i) {
        const std::uint64_t state = state_.load(std::memory_order_acquire);
        if (is_new(state, seen)) return state;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock lock(sleep_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return is_new(state_.load(), seen); });
    sleepers_.fetch_sub(1);
    return state_.load();
  }

  // Takes tasks of the job that `state` belongs to until none is left.
  void take_tasks(std::uint64_t state) {
    const std::uint64_t job = state;
    while (!is_new(state, job)) {
      const Task task = task_.load(std::memory_order_acquire);
      void* const context = context_.load(std::memory_order_acquire);
      const auto index = static_cast<std::uint32_t>(state);
      if (index >= count_.load(std::memory_order_acquire)) return;
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      task(context, index);
      done_.fetch_add(1, std::memory_order_release);
      state = state_.load(std::memory_order_acquire);
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  std::atomic<std::uint64_t> state_{0};  // generation << 32 | next task
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> done_{0};
  std::atomic<int> helpers_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

// Never destroyed: its threads wait for as long as the process lives.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  // A child process has none of the threads: it starts anew.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  static_cast<void>(registered);
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  auto* made = new Pool;
  if (the_pool.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
  delete made;
  return *found;
}

}  // namespace

void run_tasks(int threads, std::uint32_t count, Task task, void* context) {
  if (count < 2 || threads < 2) {
    for (std::uint32_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  pool().run(threads < kMaxThreads ? threads : kMaxThreads, count, task, context);
}

}  // namespace we::cpu
