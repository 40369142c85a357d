// Results of GPU instructions for random operands, to test a CPU emulator against: a file of raw arrays (vectors.bin)
// and its index (vectors.json), which benchmarks/gpu_session/vectors.py reads.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define CUDA(call) ::conformance::check(call, #call, __FILE__, __LINE__)

namespace conformance {

inline void check(cudaError_t code, const char *what, const char *file, int line) {
    if (code == cudaSuccess)
        return;
    std::fprintf(stderr, "%s:%d: %s: %s (%s)\n", file, line, what, cudaGetErrorString(code), cudaGetErrorName(code));
    std::exit(1);
}

[[noreturn]] inline void fail(const std::string &what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

// Random numbers from a seed (splitmix64), the same on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    int below(int count) { return static_cast<int>(bits() % static_cast<uint64_t>(count)); }
    float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; } // in [0, 1)
    float normal() {
        const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform()));
        return radius * std::cos(6.2831853f * uniform());
    }

  private:
    uint64_t state_;
};

template <class T> struct Name;
template <> struct Name<uint8_t> {
    static constexpr const char *text = "uint8";
};
template <> struct Name<uint16_t> {
    static constexpr const char *text = "uint16";
};
template <> struct Name<uint32_t> {
    static constexpr const char *text = "uint32";
};
template <> struct Name<int32_t> {
    static constexpr const char *text = "int32";
};
template <> struct Name<float> {
    static constexpr const char *text = "float32";
};

// An array on the GPU, copied from the host or with all bits set, so that missing writes show.
template <class T> class OnDevice {
  public:
    explicit OnDevice(size_t count) : count_(count) {
        CUDA(cudaMalloc(&data_, count * sizeof(T)));
        CUDA(cudaMemset(data_, 0xff, count * sizeof(T)));
    }
    explicit OnDevice(const std::vector<T> &values) : OnDevice(values.size()) {
        CUDA(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    OnDevice(const OnDevice &) = delete;
    ~OnDevice() { cudaFree(data_); }

    operator T *() const { return data_; }
    // Waits for the kernels launched before.
    std::vector<T> values() const {
        std::vector<T> result(count_);
        CUDA(cudaGetLastError());
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return result;
    }

  private:
    T *data_ = nullptr;
    size_t count_;
};

// The recording, written at the end. Names are plain words: nothing is escaped.
class Vectors {
  public:
    Random random;

    explicit Vectors(uint64_t seed) : random(seed), seed_(seed) {}

    // Starts an entry; `array` and `option` add to it. kind: tells a reader how to interpret it.
    void begin(const std::string &name, const std::string &kind, const std::string &instruction) {
        entries_ += (entries_.empty() ? "" : "}},\n") + std::string("    {\"name\": \"") + name + "\", \"kind\": \"" +
                    kind + "\", \"instruction\": \"" + instruction + "\"";
        in_arrays_ = false;
    }
    void option(const std::string &name, int value) {
        if (in_arrays_)
            fail("options come before arrays");
        entries_ += ", \"" + name + "\": " + std::to_string(value);
    }
    template <class T>
    void array(const std::string &name, const std::vector<int> &shape, const std::vector<T> &values) {
        size_t count = 1;
        std::string sizes;
        for (int n : shape) {
            count *= static_cast<size_t>(n);
            sizes += (sizes.empty() ? "" : ", ") + std::to_string(n);
        }
        if (count != values.size())
            fail(name + " has another shape than values");
        entries_ += (in_arrays_ ? ", \"" : ", \"arrays\": {\"") + name + "\": {\"dtype\": \"" + Name<T>::text +
                    "\", \"shape\": [" + sizes + "], \"offset\": " + std::to_string(data_.size()) + "}";
        in_arrays_ = true;
        const char *bytes = reinterpret_cast<const char *>(values.data());
        data_.append(bytes, count * sizeof(T));
    }
    // An instruction that this GPU lacks.
    void absent(const std::string &name, const std::string &why) {
        absent_ +=
            (absent_.empty() ? "" : ",\n") + std::string("    {\"name\": \"") + name + "\", \"why\": \"" + why + "\"}";
    }
    void write(const std::string &folder, const std::string &gpu, int capability, int driver, int runtime) const {
        const std::string head = "{\"format\": 1, \"gpu\": \"" + gpu +
                                 "\", \"capability\": " + std::to_string(capability) +
                                 ", \"driver\": " + std::to_string(driver) +
                                 ", \"runtime\": " + std::to_string(runtime) + ", \"seed\": " + std::to_string(seed_);
        const std::string close = entries_.empty() ? "" : "}}\n";
        save(folder + "/vectors.bin", data_);
        save(
            folder + "/vectors.json", head + ",\n  \"vectors\": [\n" + entries_ + close + "  ],\n  \"absent\": [\n" +
                                          absent_ + (absent_.empty() ? "" : "\n") + "  ]\n}\n");
    }

  private:
    static void save(const std::string &path, const std::string &bytes) {
        std::FILE *file = std::fopen(path.c_str(), "wb");
        if (!file || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || std::fclose(file))
            fail("cannot write " + path);
    }

    uint64_t seed_;
    std::string entries_, absent_, data_;
    bool in_arrays_ = false;
};

// fp32 → the bits of a narrower format, to nearest even, for finite values.
inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_fp16(float x) { // of values that are normal in fp16, or zero
    const uint32_t bits = bits_of(x), kept = bits & 0x7fffffff;
    if (kept < 0x38800000)
        return static_cast<uint16_t>(bits >> 16 & 0x8000);
    return static_cast<uint16_t>((bits >> 16 & 0x8000) | ((kept + 0xfff + (kept >> 13 & 1)) - 0x38000000) >> 13);
}
inline uint8_t to_e4m3(float x) { // of values that are normal in e4m3, or zero
    const uint32_t bits = bits_of(x), kept = bits & 0x7fffffff;
    if (kept < 0x3c800000)
        return static_cast<uint8_t>(bits >> 24 & 0x80);
    const uint32_t code = ((kept + 0x7ffff + (kept >> 20 & 1)) - 0x3c000000) >> 20;
    return static_cast<uint8_t>((bits >> 24 & 0x80) | (code < 0x7e ? code : 0x7e));
}

inline uint32_t pack_halves(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

} // namespace conformance
