#define KINEMA_ISA avx2
#include "simd_avx2.h"

#include "kernels.h"

namespace kinema {

KINEMA_TABLE(avx2);

} // namespace kinema
