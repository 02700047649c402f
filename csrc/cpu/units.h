#pragma once

#include <cstdint>

#include "layout.h"

// What the loops over one tensor of units get. A row is a filter of its layer; columns are channels, counted per group
// of rows.
namespace we::cpu {

// Of each row: the sum of its elements' magnitudes, or of those elements that are finite, and how many these are.
struct RowSums {
  const Layer* layer;
  const void* tensor;
  const std::uint8_t* rows;      // [filters]: 0 for those that are left out
  const std::int32_t* elements;  // [groups][elements of a row]: 0 for those left out, else -1; in the order of memory
                                 // if rows are dense, else row-major. Or null: none is left out
  std::int64_t rows_per_group;
  bool magnitudes;
  double* totals;        // [filters]
  std::int64_t* counts;  // [filters]
};

// Random numbers of one tensor, uniform in +- bound.
struct Draws {
  std::uint64_t seed;
  std::uint64_t step;
  std::uint32_t stream;
  float bound;
};

// The same number for all, or numbers drawn and scaled.
struct UnitValue {
  double number;
  const float* scales;  // of each row or column; or null: the number is written
};

struct UnitWrites {
  const Layer* layer;
  void* tensor;
  const std::uint8_t* rows;     // [filters]: 1 for those that are written
  const std::int32_t* columns;  // the channels that are written, group by group
  const std::int64_t* starts;   // [groups + 1]: where each group's are
  std::int64_t rows_per_group;
  bool columns_first;  // a written column goes before a written row
  UnitValue row;
  UnitValue column;
  Draws draws;
};

}  // namespace we::cpu
