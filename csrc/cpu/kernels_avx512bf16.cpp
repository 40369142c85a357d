#define KINEMA_ISA avx512bf16
#include "simd_avx512.h"

#include "kernels.h"

namespace kinema {

KINEMA_TABLE(avx512bf16);

} // namespace kinema
