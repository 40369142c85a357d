#define KINEMA_ISA avx512vnni
#include "simd_avx512.h"

#include "kernels.h"

namespace kinema {

KINEMA_TABLE(avx512vnni);

} // namespace kinema
