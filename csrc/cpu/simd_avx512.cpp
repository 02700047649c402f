#define WE_SIMD_NAME "avx512"
#define WE_SIMD_KERNELS kAvx512
#define WE_SIMD_BYTES 64
#include "cpu/simd_kernels.h"
