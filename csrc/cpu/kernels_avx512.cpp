#define KINEMA_ISA avx512
#include "simd_avx512.h"

#include "kernels.h"

namespace kinema {

KINEMA_TABLE(avx512);

} // namespace kinema
