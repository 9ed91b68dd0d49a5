/* A libnvidia-ml.so.1 for machines without a GPU: the calls that raysched and Ray make, answered from the
 * text file that FAKE_NVML_STATE names, which is read anew once it has changed:
 *
 *     driver VERSION
 *     init CODE                              what nvmlInit answers
 *     gpu UUID TOTAL_MIB USED_MIB MIG NAME   MIG: 0 off, 1 on, -1 not supported (at first)
 *     lost INDEX                             this GPU no longer answers
 *     process INDEX PID MIB LIST [GI]        LIST: compute, graphics or mps; MIB -1: not available; GI: the
 *                                            number of the GPU instance that it is in
 *     profile INDEX ENUM ID SLICES MOST SM MIB SIZE NAME STARTS
 *                                            what the GPU can be cut into; STARTS such as 0,2,4
 *     unprivileged                           nobody may cut, or ask about GPU instances
 *     sticky INDEX CODE                      a change of the MIG mode stays pending with this status
 *     stubborn INDEX ID START CODE           this instance can't be created or destroyed
 *     barren INDEX                           no compute instance can be created
 *     remapped INDEX CORRECTABLE UNCORRECTABLE PENDING FAILED
 *     recovery INDEX ACTION                  field 230; without it not supported
 *     xid INDEX CODE                         an event, for those who registered before the line came
 *     cuda VERSION                           such as 12080
 *     pci INDEX BUS CAPABILITY               such as 00000000:3B:00.0 8.0; without it not supported
 *     link INDEX INDEX LEVEL NVLINK          the PCIe level that two GPUs have in common (10 to 50), and whether
 *                                            an NVLink joins them (1, 0); without it not supported
 *     limits                                 memory limits of control groups are known
 *     fail FUNCTION CODE                     this call does nothing and answers with CODE
 *
 * With FAKE_NVML_CALLS in the environment, the name of each function that is called is added to that file.
 *     busy INDEX PERCENT                     how busy it is, and
 *     active INDEX PID PERCENT               how busy a process keeps it; without `busy` neither is supported
 *     gpm INDEX GI PERCENT                   how busy a GPU instance is, on a GPU that can tell
 *     watts INDEX NUMBER                     its power, and
 *     celsius INDEX NUMBER                   its temperature; without them not supported
 *
 * The memory limits of control groups are kept in the file of that name with ".limits" behind it, one a line:
 * INDEX, the number of the group's folder (its inode), the limits in bytes, the folder.
 *
 * How GPUs are cut is kept in the file of that name with ".mig" behind it, mapped into every process that uses
 * this library. Without the variable: "driver not loaded". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, IN_USE = 19,
       INSUFFICIENT_RESOURCES = 23 };
enum { HANDLES = 1 << 18, FAILS = 64, GPUS = 32, INSTANCES = 16, PROFILES = 16, PROFILE_ENUMS = 18, LINES = 64, XID = 8, NONE = ~0u };

typedef unsigned long long u64;
typedef struct { int index, number; unsigned id, slices, most, sm, size, starts[8], count; u64 mib; char name[64]; }
    profile_t;
typedef struct { char uuid[96], name[96], bus[32]; u64 total, used; int mig, lost, sticky, barren, remapped[4], recovery;
    int major, minor; } gpu_t;
typedef struct { char function[80]; int code; } fail_t;
typedef struct { int a, b, level, nvlink; } link_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char name[32]; } pci_t;
typedef struct { int gpu; unsigned pid, gi; long long mib; char list[16]; } use_t;
typedef struct { int gpu, code; unsigned id, start; } stubborn_t;
typedef struct { int gpu; u64 code; } xid_t;
/* A GPU instance (gi), with its one compute instance (ci) where it has it; `serial` tells old handles. */
typedef struct { int used, ci; unsigned profile, start, size, serial; } gi_t;
typedef struct { int begun, mode, pending; unsigned serial; gi_t gi[INSTANCES]; } cut_t;

typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned start, size; } placement_t;
typedef struct { unsigned id, p2p, slices, most, sm, ce, dec, enc, jpeg, ofa; u64 mib; } profile_v1_t;
typedef struct { unsigned version, id, p2p, slices, most, sm, ce, dec, enc, jpeg, ofa; u64 mib; char name[96]; }
    profile_v2_t;
typedef struct { unsigned version, id, slices, most, sm, ce, dec, enc, jpeg, ofa; char name[96]; } ci_profile_t;
typedef struct { void *device; unsigned id, profile; placement_t placement; } gi_info_t;
typedef struct { unsigned sm, ce, dec, enc, jpeg, ofa, gi_slices, ci_slices; u64 mib; } attributes_t;
typedef struct { void *device; u64 type, data; unsigned gi, ci; } event_t;
typedef struct { unsigned field, scope; long long time, latency; unsigned type; int code; u64 value; } field_t;
typedef struct { int registered[GPUS], seen; } set_t;
/* What a handle of an instance points to: 'm' MIG device, 'g' GPU instance, 'c' compute instance. */
typedef struct { char kind; int gpu, slot; unsigned serial; } handle_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char driver[80];
static gpu_t gpus[GPUS];
static use_t uses[LINES];
static profile_t profiles[LINES];
static stubborn_t stubborn[LINES];
static xid_t xids[LINES];
static link_t links[LINES];
static fail_t fails[FAILS];
static handle_t handles[HANDLES];
static int cuda, limits, link_count, fail_count;
static int init_code, privileged, gpu_count, use_count, profile_count, stubborn_count, xid_count, handle_count;
static int listeners[GPUS]; /* event sets of this process, each a user of the GPU */
static cut_t *cuts;
static int cuts_file = -1;

static void read_activity(const char *line);
static int part_count;

/* ------------------------------------------------------------ state */

static void read_profile(const char *line) {
    profile_t *p = &profiles[profile_count];
    char starts[64];
    if (profile_count == LINES ||
        sscanf(line, "profile %d %d %u %u %u %u %llu %u %63s %63s", &p->index, &p->number, &p->id, &p->slices,
               &p->most, &p->sm, &p->mib, &p->size, p->name, starts) != 10) return;
    p->count = 0;
    for (char *at = strtok(starts, ","); at && p->count < 8; at = strtok(NULL, ",")) p->starts[p->count++] = atoi(at);
    profile_count++;
}

static void read_line(const char *line) {
    gpu_t *gpu = &gpus[gpu_count];
    use_t *use = &uses[use_count];
    stubborn_t *rock = &stubborn[stubborn_count];
    xid_t *xid = &xids[xid_count];
    link_t *link = &links[link_count];
    fail_t *fail = &fails[fail_count];
    char bus[32];
    int i, a, b, c, d;
    if (fail_count < FAILS && sscanf(line, "fail %79s %d", fail->function, &fail->code) == 2) fail_count++;
    if (link_count < LINES && sscanf(line, "link %d %d %d %d", &link->a, &link->b, &link->level, &link->nvlink) == 4)
        link_count++;
    if (sscanf(line, "pci %d %31s %d.%d", &i, bus, &a, &b) == 4) {
        strcpy(gpus[i].bus, bus);
        gpus[i].major = a, gpus[i].minor = b;
    }
    sscanf(line, "cuda %d", &cuda);
    sscanf(line, "driver %79s", driver);
    sscanf(line, "init %d", &init_code);
    if (!strncmp(line, "unprivileged", 12)) privileged = 0;
    if (!strncmp(line, "limits", 6)) limits = 1;
    if (gpu_count < GPUS && sscanf(line, "gpu %95s %llu %llu %d %95[^\n]", gpu->uuid, &gpu->total, &gpu->used,
                                   &gpu->mig, gpu->name) == 5) {
        gpu->lost = gpu->sticky = gpu->barren = gpu->bus[0] = 0;
        gpu->remapped[0] = gpu->recovery = -1;
        gpu_count++;
    }
    if (sscanf(line, "lost %d", &i) == 1) gpus[i].lost = 1;
    if (sscanf(line, "barren %d", &i) == 1) gpus[i].barren = 1;
    if (sscanf(line, "sticky %d %d", &i, &a) == 2) gpus[i].sticky = a;
    if (sscanf(line, "recovery %d %d", &i, &a) == 2) gpus[i].recovery = a;
    if (sscanf(line, "remapped %d %d %d %d %d", &i, &a, &b, &c, &d) == 5)
        memcpy(gpus[i].remapped, (int[]){a, b, c, d}, sizeof gpus[i].remapped);
    use->gi = NONE;
    if (use_count < LINES && sscanf(line, "process %d %u %lld %15s %u", &use->gpu, &use->pid, &use->mib, use->list,
                                    &use->gi) >= 4) use_count++;
    if (stubborn_count < LINES && sscanf(line, "stubborn %d %u %u %d", &rock->gpu, &rock->id, &rock->start,
                                         &rock->code) == 4) stubborn_count++;
    if (xid_count < LINES && sscanf(line, "xid %d %llu", &xid->gpu, &xid->code) == 2) xid_count++;
    read_profile(line);
    read_activity(line);
}

static void map_cuts(const char *path) {
    char name[4096];
    size_t size = GPUS * sizeof(cut_t);
    snprintf(name, sizeof name, "%s.mig", path);
    cuts_file = open(name, O_RDWR | O_CREAT, 0600);
    if (cuts_file < 0 || ftruncate(cuts_file, size)) abort();
    cuts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cuts_file, 0);
    if (cuts == MAP_FAILED) abort();
}

static void read_state(void) {
    static char text[1 << 16], known[1 << 16];
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    if (file) {
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        if (known[0] && !strcmp(text, known)) {
            fclose(file);
            return;
        }
        strcpy(known, text);
        rewind(file);
    }
    init_code = file ? SUCCESS : DRIVER_NOT_LOADED;
    privileged = 1;
    cuda = limits = link_count = fail_count = 0;
    part_count = 0;
    gpu_count = use_count = profile_count = stubborn_count = xid_count = 0;
    while (file && fgets(line, sizeof line, file)) read_line(line);
    if (!file) known[0] = 0;
    if (!file) return;
    fclose(file);
    if (!cuts) map_cuts(path);
}

static int begin(const char *function) {
    const char *calls = getenv("FAKE_NVML_CALLS");
    FILE *log = calls ? fopen(calls, "a") : NULL;
    if (log) fprintf(log, "%s\n", function), fclose(log);
    for (int i = 0; i < fail_count; i++)
        if (!strcmp(fails[i].function, function)) return fails[i].code;
    return SUCCESS;
}

/* Every call holds this: threads and processes see each change whole. */
static void lock(void) {
    pthread_mutex_lock(&mutex);
    read_state();
    if (cuts_file >= 0) flock(cuts_file, LOCK_EX);
    for (int i = 0; cuts && i < gpu_count; i++)
        if (!cuts[i].begun) cuts[i].begun = 1, cuts[i].mode = cuts[i].pending = gpus[i].mig;
}

static int leave(int code) {
    if (cuts_file >= 0) flock(cuts_file, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    return code;
}

/* The beginning of every call; it ends there where the state says that it fails. */
#define enter() do { lock(); int failed_ = begin(__func__); if (failed_) return leave(failed_); } while (0)
#define CALL(code) do { enter(); return leave(code); } while (0)

static int copy(char *to, unsigned size, const char *from) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

static gpu_t *gpu_of(void *handle) {
    return (gpu_t *)handle >= gpus && (gpu_t *)handle < gpus + GPUS ? handle : NULL;
}

static void *handle_of(char kind, int gpu, int slot) {
    unsigned serial = cuts[gpu].gi[slot].serial;
    for (int i = handle_count - 1; i >= 0; i--) {
        handle_t *h = &handles[i];
        if (h->kind == kind && h->gpu == gpu && h->slot == slot && h->serial == serial) return h;
    }
    if (handle_count == HANDLES) abort();
    handles[handle_count] = (handle_t){kind, gpu, slot, serial};
    return &handles[handle_count++];
}

/* The instance behind a handle; NULL where it is gone, or the handle is of another kind. */
static gi_t *instance_of(handle_t *h, char kind) {
    if (h < handles || h >= handles + handle_count || h->kind != kind) return NULL;
    gi_t *gi = &cuts[h->gpu].gi[h->slot];
    return gi->used && gi->serial == h->serial && (kind == 'g' || gi->ci) ? gi : NULL;
}

static profile_t *profile_of(int gpu, unsigned id) {
    for (int i = 0; i < profile_count; i++)
        if (profiles[i].index == gpu && profiles[i].id == id) return &profiles[i];
    return NULL;
}

static int used_by(int gpu, unsigned gi) {
    for (int i = 0; i < use_count; i++)
        if (uses[i].gpu == gpu && (gi == NONE || uses[i].gi == gi)) return 1;
    return 0;
}

static int rock_at(int gpu, unsigned id, unsigned start) {
    for (int i = 0; i < stubborn_count; i++)
        if (stubborn[i].gpu == gpu && stubborn[i].id == id && stubborn[i].start == start) return stubborn[i].code;
    return SUCCESS;
}

/* ------------------------------------------------------------ the driver and its GPUs */

int nvmlInitWithFlags(unsigned flags) { (void)flags; enter(); return leave(init_code); }
int nvmlInit_v2(void) { enter(); return leave(init_code); }
int nvmlShutdown(void) { CALL(SUCCESS); }

const char *nvmlErrorString(int code) {
    switch (code) {
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NO_PERMISSION: return "Insufficient Permissions";
    case IN_USE: return "In use by another client";
    case INSUFFICIENT_RESOURCES: return "Insufficient Resources";
    default: return "Fake error";
    }
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    enter();
    *version = cuda;
    return leave(cuda ? SUCCESS : NOT_SUPPORTED);
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { CALL(copy(out, size, driver)); }

int nvmlDeviceGetCount_v2(unsigned *count) { enter(); *count = gpu_count; return leave(SUCCESS); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    enter();
    if ((int)index >= gpu_count) return leave(INVALID_ARGUMENT);
    *handle = &gpus[index];
    return leave(gpus[index].lost ? GPU_IS_LOST : SUCCESS);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    enter();
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) {
            *handle = &gpus[i];
            return leave(gpus[i].lost ? GPU_IS_LOST : SUCCESS);
        }
    return leave(NOT_FOUND);
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    enter();
    gpu_t *gpu = gpu_of(handle);
    char name[160];
    if (gpu) return leave(copy(out, size, gpu->uuid));
    handle_t *h = handle;
    gi_t *gi = instance_of(h, 'm');
    if (!gi) return leave(INVALID_ARGUMENT);
    snprintf(name, sizeof name, "MIG-%.16s-%d-%u", gpus[h->gpu].uuid + 4, h->slot + 1, gi->serial);
    return leave(copy(out, size, name));
}

int nvmlDeviceGetName(gpu_t *gpu, char *out, unsigned size) { CALL(copy(out, size, gpu->name)); }

int nvmlDeviceGetPciInfo_v3(gpu_t *gpu, pci_t *out) {
    enter();
    *out = (pci_t){0};
    strcpy(out->name, gpu->bus);
    return leave(gpu->bus[0] ? SUCCESS : NOT_SUPPORTED);
}

int nvmlDeviceGetCudaComputeCapability(gpu_t *gpu, int *major, int *minor) {
    enter();
    *major = gpu->major, *minor = gpu->minor;
    return leave(gpu->bus[0] ? SUCCESS : NOT_SUPPORTED);
}

static link_t *link_of(gpu_t *one, gpu_t *other) {
    int a = one - gpus, b = other - gpus;
    for (int i = 0; i < link_count; i++)
        if ((links[i].a == a && links[i].b == b) || (links[i].a == b && links[i].b == a)) return &links[i];
    return NULL;
}

int nvmlDeviceGetTopologyCommonAncestor(gpu_t *one, gpu_t *other, int *level) {
    enter();
    link_t *link = link_of(one, other);
    if (link) *level = link->level;
    return leave(link ? SUCCESS : NOT_SUPPORTED);
}

/* Of what can be asked, only NVLink (2) is known: 0 is yes, 5 not supported. */
int nvmlDeviceGetP2PStatus(gpu_t *one, gpu_t *other, int what, int *status) {
    enter();
    link_t *link = link_of(one, other);
    *status = link && link->nvlink && what == 2 ? 0 : 5;
    return leave(link ? SUCCESS : NOT_SUPPORTED);
}

static int memory_code(void *handle) {
    gpu_t *gpu = gpu_of(handle);
    if (!gpu) return NOT_SUPPORTED;
    if (gpu->lost) return GPU_IS_LOST;
    return cuts[gpu - gpus].mode == 1 && !privileged ? NO_PERMISSION : SUCCESS;
}

int nvmlDeviceGetMemoryInfo(gpu_t *gpu, memory_t *out) {
    enter();
    *out = (memory_t){gpu->total << 20, (gpu->total - gpu->used) << 20, gpu->used << 20};
    return leave(memory_code(gpu));
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(gpu_t *gpu, memory_v2_t *out) {
    enter();
    out->total = gpu->total << 20;
    out->used = gpu->used << 20;
    out->reserved = 0;
    out->free = out->total - out->used;
    return leave(memory_code(gpu));
}
#endif

static int list(void *handle, unsigned *room, process_t *out, const char *wanted) {
    gpu_t *gpu = gpu_of(handle);
    handle_t *h = handle;
    if (gpu && cuts[gpu - gpus].mode == 1 && !privileged) return leave(NO_PERMISSION);
    if (!gpu && !instance_of(h, 'm')) return leave(INVALID_ARGUMENT);
    int index = gpu ? gpu - gpus : h->gpu;
    unsigned found = 0;
    for (int i = 0; i < use_count; i++) {
        if (uses[i].gpu != index || strcmp(uses[i].list, wanted)) continue;
        if (!gpu && uses[i].gi != (unsigned)h->slot + 1) continue;
        if (found < *room)
            out[found] = (process_t){uses[i].pid, uses[i].mib < 0 ? ~0ULL : (u64)uses[i].mib << 20, uses[i].gi,
                                     uses[i].gi == NONE ? NONE : 0};
        found++;
    }
    int fits = found <= *room;
    *room = found;
    return leave(fits ? SUCCESS : INSUFFICIENT_SIZE);
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *room, process_t *out) {
    enter();
    return list(handle, room, out, "compute");
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *room, process_t *out) {
    enter();
    return list(handle, room, out, "graphics");
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *room, process_t *out) {
    enter();
    return list(handle, room, out, "mps");
}
#endif

/* ------------------------------------------------------------ memory limits */

typedef struct { const char *folder; u64 soft, hard; } limit_t;
typedef struct { const char *folder; u64 soft, hard, used; } limits_t;

static FILE *limits_file(const char *mode) {
    char name[4096];
    snprintf(name, sizeof name, "%s.limits", getenv("FAKE_NVML_STATE"));
    return fopen(name, mode);
}

static int limits_code(gpu_t *gpu, const char *folder, struct stat *found) {
    if (!limits || cuts[gpu - gpus].mode == 1) return NOT_SUPPORTED;
    return stat(folder, found) || !S_ISDIR(found->st_mode) ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceSetMemoryLimits_v1(gpu_t *gpu, limit_t *wanted) {
    enter();
    struct stat group;
    int code = limits_code(gpu, wanted->folder, &group);
    if (code) return leave(code);
    if (!privileged) return leave(NO_PERMISSION);
    if (wanted->soft > wanted->hard || !wanted->hard) return leave(INVALID_ARGUMENT);
    FILE *file = limits_file("a");
    fprintf(file, "%d %lu %llu %llu %s\n", (int)(gpu - gpus), (unsigned long)group.st_ino, wanted->soft,
            wanted->hard, wanted->folder);
    fclose(file);
    return leave(SUCCESS);
}

/* The last limit of the group, none (as the header says it) where it never had one. */
int nvmlDeviceGetMemoryLimits_v1(gpu_t *gpu, limits_t *out) {
    enter();
    struct stat group;
    int code = limits_code(gpu, out->folder, &group), index;
    if (code) return leave(code);
    FILE *file = limits_file("r");
    unsigned long inode;
    u64 soft, hard;
    out->soft = out->used = 0, out->hard = ~0ULL;
    while (file && fscanf(file, "%d %lu %llu %llu %*[^\n]", &index, &inode, &soft, &hard) == 4)
        if (index == gpu - gpus && inode == group.st_ino) out->soft = soft, out->hard = hard;
    if (file) fclose(file);
    return leave(SUCCESS);
}

/* ------------------------------------------------------------ MIG: the mode, what there is */

int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    enter();
    if (gpu->mig < 0) return leave(NOT_SUPPORTED);
    *current = cuts[gpu - gpus].mode;
    *pending = cuts[gpu - gpus].pending;
    return leave(SUCCESS);
}

int nvmlDeviceSetMigMode(gpu_t *gpu, unsigned mode, int *status) {
    enter();
    cut_t *cut = &cuts[gpu - gpus];
    if (gpu->mig < 0) return leave(NOT_SUPPORTED);
    if (!privileged) return leave(NO_PERMISSION);
    cut->pending = mode;
    *status = used_by(gpu - gpus, NONE) || listeners[gpu - gpus] ? IN_USE : gpu->sticky;
    if ((int)mode == cut->mode) *status = SUCCESS;
    if (*status == SUCCESS && (int)mode != cut->mode) {
        cut->mode = mode;
        memset(cut->gi, 0, sizeof cut->gi);
    }
    return leave(SUCCESS);
}

static int profile_at(int gpu, unsigned number, profile_t **found) {
    if (number >= PROFILE_ENUMS) return INVALID_ARGUMENT;
    for (int i = 0; i < profile_count; i++)
        if (profiles[i].index == gpu && profiles[i].number == (int)number) return *found = &profiles[i], SUCCESS;
    return NOT_SUPPORTED;
}

int nvmlDeviceGetGpuInstanceProfileInfo(gpu_t *gpu, unsigned number, profile_v1_t *out) {
    enter();
    profile_t *p;
    int code = profile_at(gpu - gpus, number, &p);
    if (code == SUCCESS)
        *out = (profile_v1_t){.id = p->id, .slices = p->slices, .most = p->most, .sm = p->sm, .mib = p->mib};
    return leave(code);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetGpuInstanceProfileInfoV(gpu_t *gpu, unsigned number, profile_v2_t *out) {
    enter();
    profile_t *p;
    int code = profile_at(gpu - gpus, number, &p);
    if (code == SUCCESS) {
        *out = (profile_v2_t){.version = out->version, .id = p->id, .slices = p->slices, .most = p->most,
                              .sm = p->sm, .mib = p->mib};
        snprintf(out->name, sizeof out->name, "MIG %s", p->name);
    }
    return leave(code);
}
#endif

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(gpu_t *gpu, unsigned id, placement_t *out, unsigned *count) {
    enter();
    profile_t *p = profile_of(gpu - gpus, id);
    if (!p || cuts[gpu - gpus].mode != 1) return leave(NOT_SUPPORTED);
    for (unsigned i = 0; out && i < p->count && i < *count; i++) out[i] = (placement_t){p->starts[i], p->size};
    *count = p->count;
    return leave(SUCCESS);
}

/* ------------------------------------------------------------ MIG: GPU instances */

static int room_for(int gpu, profile_t *p, placement_t *at) {
    unsigned same = 0, legal = 0;
    for (unsigned i = 0; i < p->count; i++) legal |= p->starts[i] == at->start;
    for (int i = 0; i < INSTANCES; i++) {
        gi_t *gi = &cuts[gpu].gi[i];
        if (!gi->used) continue;
        same += gi->profile == p->id;
        if (gi->start < at->start + p->size && at->start < gi->start + gi->size) return INSUFFICIENT_RESOURCES;
    }
    if (!legal || at->size != p->size) return INVALID_ARGUMENT;
    return same >= p->most ? INSUFFICIENT_RESOURCES : SUCCESS;
}

int nvmlDeviceCreateGpuInstanceWithPlacement(gpu_t *gpu, unsigned id, placement_t *at, void **out) {
    enter();
    int index = gpu - gpus, slot = 0;
    profile_t *p = profile_of(index, id);
    if (!p || cuts[index].mode != 1) return leave(NOT_SUPPORTED);
    if (!privileged) return leave(NO_PERMISSION);
    int code = rock_at(index, id, at->start);
    if (code == SUCCESS) code = room_for(index, p, at);
    if (code != SUCCESS) return leave(code);
    while (slot < INSTANCES && cuts[index].gi[slot].used) slot++;
    if (slot == INSTANCES) return leave(INSUFFICIENT_RESOURCES);
    cuts[index].gi[slot] = (gi_t){1, 0, id, at->start, p->size, ++cuts[index].serial};
    *out = handle_of('g', index, slot);
    return leave(SUCCESS);
}

int nvmlGpuInstanceDestroy(handle_t *h) {
    enter();
    gi_t *gi = instance_of(h, 'g');
    if (!gi) return leave(INVALID_ARGUMENT);
    if (!privileged) return leave(NO_PERMISSION);
    if (gi->ci) return leave(IN_USE);
    int code = rock_at(h->gpu, gi->profile, gi->start);
    if (code == SUCCESS) gi->used = 0;
    return leave(code);
}

int nvmlDeviceGetGpuInstances(gpu_t *gpu, unsigned id, void **out, unsigned *count) {
    enter();
    int index = gpu - gpus;
    if (cuts[index].mode != 1) return leave(NOT_SUPPORTED);
    if (!privileged) return leave(NO_PERMISSION);
    *count = 0;
    for (int i = 0; i < INSTANCES; i++)
        if (cuts[index].gi[i].used && cuts[index].gi[i].profile == id) out[(*count)++] = handle_of('g', index, i);
    return leave(SUCCESS);
}

int nvmlGpuInstanceGetInfo(handle_t *h, gi_info_t *out) {
    enter();
    gi_t *gi = instance_of(h, 'g');
    if (!gi) return leave(INVALID_ARGUMENT);
    *out = (gi_info_t){&gpus[h->gpu], h->slot + 1, gi->profile, {gi->start, gi->size}};
    return leave(SUCCESS);
}

/* ------------------------------------------------------------ MIG: compute instances */

/* As for the real ones: profile N has N slices (7 and 8 are odd ones out), the REV1 of one slice (id 7) all the
 * multiprocessors of a 1g with double memory. */
int nvmlGpuInstanceGetComputeInstanceProfileInfoV(handle_t *h, unsigned number, unsigned engines, ci_profile_t *out) {
    static const unsigned slices[] = {1, 2, 3, 4, 7, 8, 6, 1};
    enter();
    gi_t *gi = instance_of(h, 'g');
    if (!gi || engines || number > 7) return leave(INVALID_ARGUMENT);
    profile_t *p = profile_of(h->gpu, gi->profile);
    if (slices[number] > p->slices) return leave(NOT_SUPPORTED);
    unsigned sm = number == 7 || slices[number] == p->slices ? p->sm : p->sm * slices[number] / p->slices;
    if (number == 0 && p->slices == 1 && p->size == 2) sm = p->sm / 2 + 1;
    *out = (ci_profile_t){.version = out->version, .id = number, .slices = slices[number], .most = 1, .sm = sm};
    return leave(SUCCESS);
}

int nvmlGpuInstanceCreateComputeInstance(handle_t *h, unsigned id, void **out) {
    enter();
    gi_t *gi = instance_of(h, 'g');
    if (!gi) return leave(INVALID_ARGUMENT);
    if (!privileged) return leave(NO_PERMISSION);
    if (gi->ci || gpus[h->gpu].barren) return leave(INSUFFICIENT_RESOURCES);
    gi->ci = id + 1;
    *out = handle_of('c', h->gpu, h->slot);
    return leave(SUCCESS);
}

int nvmlGpuInstanceGetComputeInstances(handle_t *h, unsigned id, void **out, unsigned *count) {
    enter();
    gi_t *gi = instance_of(h, 'g');
    if (!gi) return leave(INVALID_ARGUMENT);
    *count = gi->ci == (int)id + 1;
    if (*count) out[0] = handle_of('c', h->gpu, h->slot);
    return leave(SUCCESS);
}

int nvmlComputeInstanceDestroy(handle_t *h) {
    enter();
    gi_t *gi = instance_of(h, 'c');
    if (!gi) return leave(INVALID_ARGUMENT);
    if (used_by(h->gpu, h->slot + 1)) return leave(IN_USE);
    int code = rock_at(h->gpu, gi->profile, gi->start);
    if (code == SUCCESS) gi->ci = 0;
    return leave(code);
}

/* ------------------------------------------------------------ MIG: devices */

int nvmlDeviceGetMaxMigDeviceCount(gpu_t *gpu, unsigned *count) {
    enter();
    *count = gpu->mig < 0 ? 0 : 7;
    return leave(SUCCESS);
}

int nvmlDeviceGetMigDeviceHandleByIndex(gpu_t *gpu, unsigned number, void **out) {
    enter();
    int index = gpu - gpus;
    if (cuts[index].mode != 1) return leave(NOT_SUPPORTED);
    for (int i = 0; i < INSTANCES; i++)
        if (cuts[index].gi[i].used && cuts[index].gi[i].ci && number-- == 0) {
            *out = handle_of('m', index, i);
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

int nvmlDeviceGetGpuInstanceId(handle_t *h, unsigned *id) {
    enter();
    gi_t *gi = instance_of(h, 'm');
    if (gi) *id = h->slot + 1;
    return leave(gi ? SUCCESS : INVALID_ARGUMENT);
}

int nvmlDeviceGetAttributes_v2(handle_t *h, attributes_t *out) {
    enter();
    gi_t *gi = instance_of(h, 'm');
    if (!gi) return leave(INVALID_ARGUMENT);
    profile_t *p = profile_of(h->gpu, gi->profile);
    unsigned slices = gi->ci == 8 ? 1 : (unsigned[]){1, 2, 3, 4, 7, 8, 6}[gi->ci - 1];
    *out = (attributes_t){.sm = p->sm, .gi_slices = p->slices, .ci_slices = slices, .mib = p->mib};
    return leave(SUCCESS);
}

/* ------------------------------------------------------------ health */

int nvmlDeviceGetRemappedRows(gpu_t *gpu, unsigned *correctable, unsigned *uncorrectable, unsigned *pending,
                              unsigned *failed) {
    enter();
    int *rows = gpu->remapped;
    if (rows[0] >= 0) *correctable = rows[0], *uncorrectable = rows[1], *pending = rows[2], *failed = rows[3];
    return leave(rows[0] < 0 ? NOT_SUPPORTED : SUCCESS);
}

int nvmlDeviceGetFieldValues(gpu_t *gpu, int count, field_t *out) {
    enter();
    for (int i = 0; i < count; i++) {
        int known = out[i].field == 230 && gpu->recovery >= 0;
        out[i].code = known ? SUCCESS : NOT_SUPPORTED;
        out[i].type = 1;
        out[i].value = known ? gpu->recovery : 0;
    }
    return leave(SUCCESS);
}

int nvmlEventSetCreate(set_t **set) {
    enter();
    *set = calloc(1, sizeof **set);
    (*set)->seen = xid_count;
    return leave(SUCCESS);
}

int nvmlEventSetFree(set_t *set) {
    enter();
    for (int i = 0; i < GPUS; i++) listeners[i] -= set->registered[i];
    free(set);
    return leave(SUCCESS);
}

int nvmlDeviceGetSupportedEventTypes(gpu_t *gpu, u64 *types) {
    (void)gpu;
    enter();
    *types = XID;
    return leave(SUCCESS);
}

int nvmlDeviceRegisterEvents(gpu_t *gpu, u64 types, set_t *set) {
    enter();
    int listens = (types & XID) != 0;
    listeners[gpu - gpus] += listens - set->registered[gpu - gpus];
    set->registered[gpu - gpus] = listens;
    return leave(SUCCESS);
}

int nvmlEventSetWait_v2(set_t *set, event_t *out, unsigned timeout) {
    (void)timeout;
    enter();
    while (set->seen < xid_count) {
        xid_t *xid = &xids[set->seen++];
        if (!set->registered[xid->gpu]) continue;
        *out = (event_t){&gpus[xid->gpu], XID, xid->code, NONE, NONE};
        return leave(SUCCESS);
    }
    return leave(TIMEOUT);
}

#include "activity.c"
