/* kinema's kernels from C: y = GELU(x W^T + b) by the library, and once more by three loops. docs/embedding.md */
#include <kinema.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 37, IN = 50, OUT = 70 };

static int fail(const char *what, int32_t status) {
    fprintf(stderr, "%s: %s\n", what, kinema_status_text(status));
    return 1;
}

static void *scratch(int64_t bytes) { return aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64)); }

int main(int argc, char **argv) {
    static float x[TOKENS * IN], weight[OUT * IN], bias[OUT], y[TOKENS * OUT];
    kinema_cpu *cpu;
    int32_t status = kinema_cpu_create(argc > 1 ? argv[1] : NULL, &cpu); /* NULL: the best that there is */
    if (status != KINEMA_OK)
        return fail("kinema_cpu_create", status);
    for (int i = 0; i < TOKENS * IN; ++i)
        x[i] = sinf((float)i);
    for (int i = 0; i < OUT * IN; ++i)
        weight[i] = 0.3f * cosf((float)(3 * i));
    for (int i = 0; i < OUT; ++i)
        bias[i] = 0.01f * (float)i;

    void *packed = scratch(kinema_linear_packed_bytes(cpu, IN, OUT, KINEMA_F32, 0));
    status = kinema_linear_pack(cpu, IN, OUT, KINEMA_F32, 0, weight, packed, NULL);
    if (status != KINEMA_OK)
        return fail("kinema_linear_pack", status);

    kinema_linear_args args = {0};
    args.batch = 1;
    args.tokens = TOKENS;
    args.x = x;
    args.x_stride_s = args.x_features = args.in_features = IN;
    args.weight = packed;
    args.bias = bias;
    args.out = y;
    args.out_stride_s = args.out_features = OUT;
    args.activation = KINEMA_GELU_TANH;
    args.threads = 2;
    args.workspace = scratch(kinema_linear_workspace(cpu, &args));
    status = kinema_linear(cpu, &args, NULL); /* NULL: nobody ends it early */
    if (status != KINEMA_OK)
        return fail("kinema_linear", status);

    double worst = 0;
    for (int t = 0; t < TOKENS; ++t)
        for (int o = 0; o < OUT; ++o) {
            double sum = bias[o];
            for (int i = 0; i < IN; ++i)
                sum += (double)x[t * IN + i] * weight[o * IN + i];
            const double wanted = 0.5 * sum * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
            worst = fmax(worst, fabs(wanted - y[t * OUT + o]));
        }
    printf("%s, interface %d: largest error %.1e\n", kinema_cpu_isa(cpu), (int)kinema_abi_version(), worst);
    free(args.workspace);
    free(packed);
    kinema_cpu_destroy(cpu);
    return worst < 1e-5 ? 0 : 1;
}
