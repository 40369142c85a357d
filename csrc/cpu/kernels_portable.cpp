#define KINEMA_ISA portable
#include "simd_portable.h"

#include "kernels.h"

namespace kinema {

KINEMA_TABLE(portable);

} // namespace kinema
