/* A libnvidia-ml.so.1 for machines without a GPU: the calls that raysched and Ray make, answered from the
 * text file that FAKE_NVML_STATE names, which is read anew at each call:
 *
 *     driver VERSION
 *     init CODE                              what nvmlInit answers
 *     gpu UUID TOTAL_MIB USED_MIB MIG NAME   MIG: 0 off, 1 on, -1 not supported
 *     lost INDEX                             this GPU no longer answers
 *     process INDEX PID MIB LIST             LIST: compute, graphics or mps; MIB -1: not available
 *
 * Without the variable: "driver not loaded". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
       GPU_IS_LOST = 15, MOST = 32 };

typedef unsigned long long u64;
typedef struct { char uuid[96], name[96]; u64 total, used; int mig, lost; } gpu_t;
typedef struct { int gpu; unsigned pid; long long mib; char list[16]; } use_t;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } process_t;

static char driver[80];
static gpu_t gpus[MOST];
static use_t uses[MOST];
static int init_code, gpu_count, use_count;

static void read_line(const char *line) {
    gpu_t *gpu = &gpus[gpu_count];
    use_t *use = &uses[use_count];
    int index;
    sscanf(line, "driver %79s", driver);
    sscanf(line, "init %d", &init_code);
    if (gpu_count < MOST && sscanf(line, "gpu %95s %llu %llu %d %95[^\n]", gpu->uuid, &gpu->total, &gpu->used,
                                   &gpu->mig, gpu->name) == 5) {
        gpu->lost = 0;
        gpu_count++;
    }
    if (sscanf(line, "lost %d", &index) == 1 && index < MOST) gpus[index].lost = 1;
    if (use_count < MOST &&
        sscanf(line, "process %d %u %lld %15s", &use->gpu, &use->pid, &use->mib, use->list) == 4)
        use_count++;
}

static void read_state(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    init_code = file ? SUCCESS : DRIVER_NOT_LOADED;
    gpu_count = use_count = 0;
    while (file && fgets(line, sizeof line, file)) read_line(line);
    if (file) fclose(file);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_state(); return init_code; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Fake error"; }

static int copy(char *to, unsigned size, const char *from) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { read_state(); return copy(out, size, driver); }

int nvmlDeviceGetCount_v2(unsigned *count) { read_state(); *count = gpu_count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    read_state();
    if ((int)index >= gpu_count) return INVALID_ARGUMENT;
    *handle = &gpus[index];
    return gpus[index].lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetUUID(gpu_t *gpu, char *out, unsigned size) { return copy(out, size, gpu->uuid); }
int nvmlDeviceGetName(gpu_t *gpu, char *out, unsigned size) { return copy(out, size, gpu->name); }

int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    if (gpu->mig < 0) return NOT_SUPPORTED;
    *current = *pending = gpu->mig;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(gpu_t *gpu, memory_t *out) {
    *out = (memory_t){gpu->total << 20, (gpu->total - gpu->used) << 20, gpu->used << 20};
    return gpu->lost ? GPU_IS_LOST : SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(gpu_t *gpu, memory_v2_t *out) {
    out->total = gpu->total << 20;
    out->used = gpu->used << 20;
    out->reserved = 0;
    out->free = out->total - out->used;
    return gpu->lost ? GPU_IS_LOST : SUCCESS;
}
#endif

static int list(gpu_t *gpu, unsigned *room, process_t *out, const char *wanted) {
    unsigned found = 0;
    for (int i = 0; i < use_count; i++) {
        if (&gpus[uses[i].gpu] != gpu || strcmp(uses[i].list, wanted)) continue;
        if (found < *room)
            out[found] = (process_t){uses[i].pid, uses[i].mib < 0 ? ~0ULL : (u64)uses[i].mib << 20, ~0u, ~0u};
        found++;
    }
    int fits = found <= *room;
    *room = found;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v3(gpu_t *gpu, unsigned *room, process_t *out) {
    return list(gpu, room, out, "compute");
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(gpu_t *gpu, unsigned *room, process_t *out) {
    return list(gpu, room, out, "graphics");
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMPSComputeRunningProcesses_v3(gpu_t *gpu, unsigned *room, process_t *out) {
    return list(gpu, room, out, "mps");
}
#endif
