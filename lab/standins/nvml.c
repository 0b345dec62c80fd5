/*
 * STAND-IN for libnvidia-ml.so.1 (NVML): there is no GPU and no driver here.
 *
 * It has the functions that the project's workers call, with the types of NVIDIA's nvml.h, and answers from a text
 * file, read anew at each call, so that whoever writes the file changes what the GPU says: SEMANTIK_LAB_NVML, or
 * /etc/semantik-lab/nvml.conf. Without the file it answers as NVML does without a driver.
 *
 *     cc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml.c
 *
 * The file: a section per GPU, a line per value. A value that is left out is one that the card does not support;
 * !N in place of a value is error N of nvmlReturn_t.
 *
 *     driver 0                         what nvmlInit answers (9: no driver is loaded); may be left out
 *     gpu GPU-4f3c...
 *       name NVIDIA L4
 *       minor 0
 *       memory_mib 23034
 *       ecc_volatile 0                 uncorrectable errors since the driver's start
 *       ecc_aggregate 0                and in the card's life
 *       remap_pending 0
 *       remap_failed 0
 *       retired_pending 0
 *       temperature 41
 *       reasons 0x40                   nvmlClocksEventReasons
 *       compute_mode 0
 *       sm_mhz 2040
 *       power_mw 72000
 *       processes 4711 4712            that compute on it; nothing behind the word: none
 *       events 1                       it has Xid events
 *       xid 48                         one event; lines that are there when a process begins to listen are past
 *       xid 94 3                       one of GPU instance 3
 *       lost 1                         it has fallen off its bus
 *     mig MIG-77aa... GPU-4f3c... 3    a part of that card: its GPU instance, then values of its own
 *       memory_mib 9856
 *       processes
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15
};

#define WORD 128
#define GPUS 64
#define WHOLE 0xFFFFFFFFu
#define XID 8ull

typedef char *Device; /* its UUID, in `known` */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned int version, sensor; int temperature; } Temperature;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } Process;
typedef struct { Device device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } Event;
typedef struct { Device device; int seen; } EventSet;

static char known[GPUS][WORD];
static int started;

/* --- the file --- */

static FILE *open_file(void) {
    const char *path = getenv("SEMANTIK_LAB_NVML");
    return fopen(path && *path ? path : "/etc/semantik-lab/nvml.conf", "re");
}

/* Copies what stands behind `key` in the section of `uuid` (NULL: before all sections), of the line that `skip` such
   lines come before. Returns how many there are, or -1 where there is no such section. */
static int find(const char *uuid, const char *key, int skip, char *out) {
    char line[1024], word[WORD], first[WORD];
    int inside = uuid == NULL, there = inside, count = 0, at;
    FILE *file = open_file();
    out[0] = 0;
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "#\n")] = 0;
        if (sscanf(line, "%127s%n", word, &at) != 1) continue;
        if (!strcmp(word, "gpu") || !strcmp(word, "mig")) {
            inside = uuid && sscanf(line + at, "%127s", first) == 1 && !strcmp(first, uuid);
            there |= inside;
        }
        if (inside && !strcmp(word, key) && count++ == skip) {
            while (line[at] == ' ') at++;
            snprintf(out, WORD, "%s", line + at);
        }
    }
    fclose(file);
    return there ? count : -1;
}

/* The text of a value, or why there is none. */
static int text(Device device, const char *key, char *out) {
    char lost[WORD];
    if (!started) return UNINITIALIZED;
    if (!device) return INVALID_ARGUMENT;
    int count = find(device, key, 0, out);
    if (count < 0 || (find(device, "lost", 0, lost) > 0 && atoi(lost))) return GPU_IS_LOST;
    if (count == 0) return NOT_SUPPORTED;
    return out[0] == '!' ? atoi(out + 1) : SUCCESS;
}

static int number(Device device, const char *key, unsigned long long *out) {
    char word[WORD];
    int code = text(device, key, word);
    if (code == SUCCESS) *out = strtoull(word, NULL, 0);
    return code;
}

static int small(Device device, const char *key, unsigned int *out) {
    unsigned long long value = 0;
    int code = number(device, key, &value);
    if (code == SUCCESS) *out = (unsigned int)value;
    return code;
}

/* --- the library --- */

int nvmlInitWithFlags(unsigned int flags) {
    char word[WORD];
    FILE *file = open_file();
    (void)flags;
    if (!file) return DRIVER_NOT_LOADED;
    fclose(file);
    int code = find(NULL, "driver", 0, word) > 0 ? atoi(word) : SUCCESS;
    started += code == SUCCESS;
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!started) return UNINITIALIZED;
    started--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "0.0 (lab stand-in)");
    return started ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    char word[WORD];
    if (!started) return UNINITIALIZED;
    if (find(uuid, "gpu", 0, word) + find(uuid, "mig", 0, word) < 1) return NOT_FOUND;
    if (find(uuid, "lost", 0, word) > 0 && atoi(word)) return GPU_IS_LOST;
    for (int at = 0; at < GPUS; at++) {
        if (!known[at][0]) snprintf(known[at], WORD, "%s", uuid);
        if (!strcmp(known[at], uuid)) {
            *device = known[at];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

static int name_of(unsigned int index, char *uuid) {
    char line[1024], word[WORD];
    unsigned int at = 0;
    FILE *file = open_file();
    if (!file) return DRIVER_NOT_LOADED;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%127s %127s", word, uuid) == 2 && !strcmp(word, "gpu") && at++ == index) {
            fclose(file);
            return SUCCESS;
        }
    fclose(file);
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    char uuid[WORD];
    for (*count = 0; name_of(*count, uuid) == SUCCESS; ++*count) continue;
    return started ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *device) {
    char uuid[WORD];
    int code = name_of(index, uuid);
    return code == SUCCESS ? nvmlDeviceGetHandleByUUID(uuid, device) : code;
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned int length) {
    if (!device) return INVALID_ARGUMENT;
    snprintf(uuid, length, "%s", device);
    return SUCCESS;
}

int nvmlDeviceGetName(Device device, char *name, unsigned int length) {
    char word[WORD];
    int code = text(device, "name", word);
    if (code == SUCCESS) snprintf(name, length, "%s", word);
    return code;
}

int nvmlDeviceGetMinorNumber(Device device, unsigned int *minor) { return small(device, "minor", minor); }

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    unsigned long long mib = 0;
    int code = number(device, "memory_mib", &mib);
    if (code == SUCCESS) *memory = (Memory){mib << 20, mib << 20, 0};
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    unsigned long long mib = 0;
    int code = number(device, "memory_mib", &mib);
    if (code == SUCCESS) *memory = (MemoryV2){memory->version, mib << 20, 0, mib << 20, 0};
    return code;
}

/* `type` 1: uncorrected; `counter` 0: volatile, 1: aggregate. */
int nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, unsigned long long *count) {
    if (type != 1) return NOT_SUPPORTED;
    return number(device, counter ? "ecc_aggregate" : "ecc_volatile", count);
}

int nvmlDeviceGetRemappedRows(
    Device device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed
) {
    int code = small(device, "remap_pending", pending);
    *corrected = *uncorrected = 0;
    return code == SUCCESS ? small(device, "remap_failed", failed) : code;
}

int nvmlDeviceGetRetiredPagesPendingStatus(Device device, unsigned int *pending) {
    return small(device, "retired_pending", pending);
}

int nvmlDeviceGetTemperatureV(Device device, Temperature *temperature) {
    unsigned int degrees = 0;
    int code = small(device, "temperature", &degrees);
    if (code == SUCCESS) temperature->temperature = (int)degrees;
    return code;
}

int nvmlDeviceGetTemperature(Device device, unsigned int sensor, unsigned int *degrees) {
    (void)sensor;
    return small(device, "temperature", degrees);
}

int nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *reasons) {
    return number(device, "reasons", reasons);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
    return number(device, "reasons", reasons);
}

int nvmlDeviceGetComputeMode(Device device, unsigned int *mode) { return small(device, "compute_mode", mode); }

int nvmlDeviceGetClockInfo(Device device, unsigned int type, unsigned int *mhz) {
    return type == 1 ? small(device, "sm_mhz", mhz) : NOT_SUPPORTED; /* NVML_CLOCK_SM */
}

int nvmlDeviceGetPowerUsage(Device device, unsigned int *milliwatts) { return small(device, "power_mw", milliwatts); }

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned int *count, Process *processes) {
    char word[WORD], *pid, *rest = word;
    unsigned int room = *count, there = 0;
    int code = text(device, "processes", word);
    if (code != SUCCESS) return code;
    while ((pid = strtok_r(rest, " ", &rest))) {
        if (there < room && processes) processes[there] = (Process){(unsigned int)atoi(pid), 0, WHOLE, WHOLE};
        there++;
    }
    *count = there;
    return there > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* --- parts of a card --- */

static int part(Device device, char *card, unsigned int *instance) {
    char word[WORD];
    if (find(device, "mig", 0, word) < 1) return NOT_SUPPORTED;
    return sscanf(word, "%*s %127s %u", card, instance) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceIsMigDeviceHandle(Device device, unsigned int *is) {
    char card[WORD];
    unsigned int instance;
    *is = part(device, card, &instance) == SUCCESS;
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device device, Device *whole) {
    char card[WORD];
    unsigned int instance;
    int code = part(device, card, &instance);
    return code == SUCCESS ? nvmlDeviceGetHandleByUUID(card, whole) : code;
}

int nvmlDeviceGetGpuInstanceId(Device device, unsigned int *instance) {
    char card[WORD];
    return part(device, card, instance);
}

int nvmlDeviceGetComputeInstanceId(Device device, unsigned int *instance) {
    char card[WORD];
    int code = part(device, card, instance);
    *instance = 0;
    return code;
}

/* --- events --- */

int nvmlEventSetCreate(EventSet **set) {
    *set = calloc(1, sizeof **set);
    return *set ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceRegisterEvents(Device device, unsigned long long types, EventSet *set) {
    char word[WORD];
    unsigned int events = 0;
    int code = small(device, "events", &events);
    if (code != SUCCESS || !events || types != XID) return code == SUCCESS ? NOT_SUPPORTED : code;
    set->device = device;
    set->seen = find(device, "xid", 0, word);
    return SUCCESS;
}

int nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned int milliseconds) {
    char word[WORD];
    unsigned int xid = 0, instance = WHOLE;
    (void)milliseconds; /* nothing comes while a test's own thread waits */
    if (!set->device || find(set->device, "xid", set->seen, word) <= set->seen) return TIMEOUT;
    set->seen++;
    sscanf(word, "%u %u", &xid, &instance);
    *event = (Event){set->device, XID, xid, instance, WHOLE};
    return SUCCESS;
}

int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}
