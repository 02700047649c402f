// Random banks through every operator, for the sanitizers: odd strides and sizes, exact allocations, guard elements in
// the gaps, several callers at once. Exits with 1 and a message when a result is wrong.
//   stress [rounds] [callers]
#include "stress.h"

#include <thread>

#include "cpu/float_environment.h"
#include "cpu/tasks.h"

namespace {

void run(unsigned seed, int rounds, bool change_level) {
  const we::cpu::FloatEnvironment environment;
  we::cpu::Generator generator(seed);
  for (int round = 0; round < rounds; ++round) {
    we::cpu::stress_evolution(generator, change_level);
    we::cpu::stress_grafting(generator, change_level);
    we::cpu::stress_asynchronous(generator, change_level);
    we::cpu::stress_activity(generator, change_level);
    we::cpu::stress_reactivation(generator, change_level);
    we::cpu::stress_adamw(generator, change_level);
#ifndef __SANITIZE_THREAD__  // which would report the races that are meant
    we::cpu::stress_races(generator, change_level);
#endif
  }
}

}  // namespace

int main(int argc, char** argv) {
  we::cpu::worth_waking = 1 << 16;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  const int callers = argc > 2 ? std::atoi(argv[2]) : 3;
  run(1, rounds, true);
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) {
    threads.emplace_back([=] { run(static_cast<unsigned>(i + 2), rounds, false); });
  }
  for (std::thread& thread : threads) thread.join();
  std::puts("stress: all results agree");
}
