// The instructions that every processor of the architecture has (SSE2, NEON).
#define WE_SIMD_NAME "baseline"
#define WE_SIMD_KERNELS kBaseline
#define WE_SIMD_BYTES 16
#include "cpu/simd_kernels.h"
