/* Part of nvml.c: how busy the GPUs are. */

enum { SUPPORT_VERSION = 1, SM_UTIL = 2 };

typedef struct { int gpu; unsigned of, percent; char what[12]; } part_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct { unsigned pid; u64 time; unsigned sm, memory, encoder, decoder; } activity_t;
typedef struct { unsigned version, supported; } support_t;
typedef struct { int gpu, percent; unsigned gi; } sample_t;
typedef struct { char *short_name, *long_name, *unit; } metric_info_t;
typedef struct { unsigned id; int code; double value; metric_info_t info; } metric_t;
typedef struct { unsigned version, count; sample_t *before, *after; metric_t metrics[1]; } metrics_t;

static part_t parts[LINES];
static int part_count;
static u64 looks; /* time goes on by one from look to look */

static void read_activity(const char *line) {
    part_t *p = &parts[part_count];
    if (part_count == LINES || sscanf(line, "%11s", p->what) != 1) return;
    p->of = 0;
    if (!strcmp(p->what, "active") || !strcmp(p->what, "gpm"))
        part_count += sscanf(line, "%*s %d %u %u", &p->gpu, &p->of, &p->percent) == 3;
    else if (!strcmp(p->what, "busy") || !strcmp(p->what, "watts") || !strcmp(p->what, "celsius"))
        part_count += sscanf(line, "%*s %d %u", &p->gpu, &p->percent) == 2;
}

static part_t *part_of(int gpu, const char *what, unsigned of) {
    for (int i = 0; i < part_count; i++)
        if (parts[i].gpu == gpu && parts[i].of == of && !strcmp(parts[i].what, what)) return &parts[i];
    return NULL;
}

static int number(gpu_t *gpu, const char *what, unsigned factor, unsigned *out) {
    part_t *p = part_of(gpu - gpus, what, 0);
    if (gpu->lost) return GPU_IS_LOST;
    if (p) *out = p->percent * factor;
    return p ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(gpu_t *gpu, unsigned *out) { enter(); return leave(number(gpu, "watts", 1000, out)); }

int nvmlDeviceGetTemperature(gpu_t *gpu, unsigned sensor, unsigned *out) {
    enter();
    return leave(sensor ? INVALID_ARGUMENT : number(gpu, "celsius", 1, out));
}

int nvmlDeviceGetUtilizationRates(gpu_t *gpu, rates_t *out) {
    enter();
    if (cuts[gpu - gpus].mode == 1) return leave(NOT_SUPPORTED);
    out->memory = 0;
    return leave(number(gpu, "busy", 1, &out->gpu));
}

/* As the real one: not found where no process did anything since `since`, and unused entries are zero. */
int nvmlDeviceGetProcessUtilization(gpu_t *gpu, activity_t *out, unsigned *room, u64 since) {
    enter();
    if (cuts[gpu - gpus].mode == 1 || !part_of(gpu - gpus, "busy", 0)) return leave(NOT_SUPPORTED);
    if (!out) {
        *room = 8;
        return leave(INSUFFICIENT_SIZE);
    }
    unsigned found = 0;
    looks++;
    memset(out, 0, *room * sizeof *out);
    for (int i = 0; i < part_count && found < *room; i++)
        if (parts[i].gpu == gpu - gpus && !strcmp(parts[i].what, "active") && looks > since)
            out[found++] = (activity_t){parts[i].of, looks, parts[i].percent, 0, 0, 0};
    return leave(found ? SUCCESS : NOT_FOUND);
}

/* ------------------------------------------------------------ what Hopper tells of MIG instances */

static int has_gpm(int gpu) {
    for (int i = 0; i < part_count; i++)
        if (parts[i].gpu == gpu && !strcmp(parts[i].what, "gpm")) return 1;
    return 0;
}

int nvmlGpmQueryDeviceSupport(gpu_t *gpu, support_t *out) {
    enter();
    out->supported = has_gpm(gpu - gpus);
    return leave(out->version == SUPPORT_VERSION ? SUCCESS : INVALID_ARGUMENT);
}

int nvmlGpmSampleAlloc(sample_t **out) {
    enter();
    *out = calloc(1, sizeof **out);
    (*out)->gpu = -1;
    return leave(SUCCESS);
}

int nvmlGpmSampleFree(sample_t *sample) { enter(); free(sample); return leave(SUCCESS); }

int nvmlGpmMigSampleGet(gpu_t *gpu, unsigned gi, sample_t *out) {
    enter();
    if (cuts[gpu - gpus].mode != 1 || !has_gpm(gpu - gpus)) return leave(NOT_SUPPORTED);
    if (gi < 1 || gi > INSTANCES || !cuts[gpu - gpus].gi[gi - 1].used) return leave(NOT_FOUND);
    part_t *p = part_of(gpu - gpus, "gpm", gi);
    *out = (sample_t){gpu - gpus, p ? (int)p->percent : 0, gi};
    return leave(SUCCESS);
}

int nvmlGpmMetricsGet(metrics_t *asked) {
    enter();
    sample_t *a = asked->before, *b = asked->after;
    if (asked->version != 1 || a->gpu < 0 || a->gpu != b->gpu || a->gi != b->gi) return leave(INVALID_ARGUMENT);
    for (unsigned i = 0; i < asked->count; i++) {
        asked->metrics[i].code = asked->metrics[i].id == SM_UTIL ? SUCCESS : NOT_SUPPORTED;
        asked->metrics[i].value = b->percent;
    }
    return leave(SUCCESS);
}
