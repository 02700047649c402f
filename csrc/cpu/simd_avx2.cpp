#define WE_SIMD_NAME "avx2"
#define WE_SIMD_KERNELS kAvx2
#define WE_SIMD_BYTES 32
#include "cpu/simd_kernels.h"
