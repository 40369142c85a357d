// Records what this GPU's instructions compute: conformance FOLDER [SEED]. Exits with 1 and a message if any call
// fails.
//
//   nvcc -O2 -std=c++17 -gencode=arch=compute_90a,code=sm_90a main.cu -o conformance
#include "convert.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

int main(int argc, char **argv) {
    using namespace conformance;
    if (argc < 2 || argc > 3)
        fail("usage: conformance FOLDER [SEED]");
    cudaDeviceProp gpu{};
    int driver = 0, runtime = 0;
    CUDA(cudaGetDeviceProperties(&gpu, 0));
    CUDA(cudaDriverGetVersion(&driver));
    CUDA(cudaRuntimeGetVersion(&runtime));
    const int capability = 10 * gpu.major + gpu.minor;
    Vectors to(argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 1);
    record_ldmatrix(to);
    record_mma(to, capability);
    record_wgmma(to, capability);
    record_tma(to, capability);
    record_conversions(to, capability);
    to.write(argv[1], gpu.name, capability, driver, runtime);
    return 0;
}
