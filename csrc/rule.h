#pragma once

namespace we {

// How a filter is combined with its donor where its elements are crossed one by one: the `rule` of crossover_().
enum class Rule { paper, released };

}  // namespace we
