// The C interface, and who answers it: the copy of the emulator that is linked in, or a stand-in that the process has loaded.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "machine.h"

#if defined(MOERL_EMULATION_ASAN) || defined(MOERL_EMULATION_TSAN)

extern "C" const MoerlEmulationTable moerl_emulation_table, moerl_emulation_test_table;

namespace {

// The kernels of `launch` are those of the copy that it was meant for: its table is swapped for the one of the same name here.
int launch_instead(const MoerlEmulationLaunch* launch, char* message, size_t message_bytes) {
    for (const MoerlEmulationTable* table : {&moerl_emulation_table, &moerl_emulation_test_table}) {
        if (strcmp(table->name, launch->table->name) != 0) continue;
        MoerlEmulationLaunch own = *launch;
        own.table = table;
        return emulation::launch(own, message, message_bytes);
    }
    snprintf(message, message_bytes, "%s: the stand-in has no table %s", launch->kernel, launch->table->name);
    return MOERL_EMULATION_REFUSED;
}

#if defined(MOERL_EMULATION_ASAN)
constexpr char SANITIZER[] = "address";
#else
constexpr char SANITIZER[] = "thread";
#endif

}  // namespace

extern "C" __attribute__((visibility("default"))) const MoerlEmulationStandIn moerl_emulation_stand_in;
const MoerlEmulationStandIn moerl_emulation_stand_in = {SANITIZER, launch_instead};

#else

namespace {

const MoerlEmulationStandIn* stand_in() {
    static const void* const found = dlsym(RTLD_DEFAULT, "moerl_emulation_stand_in");
    return static_cast<const MoerlEmulationStandIn*>(found);
}

}  // namespace

extern "C" int moerl_emulation_launch(const MoerlEmulationLaunch* launch, char* message, size_t message_bytes) {
    if (stand_in() != nullptr) return stand_in()->launch(launch, message, message_bytes);
    return emulation::launch(*launch, message, message_bytes);
}

extern "C" const char* moerl_emulation_sanitizer() { return stand_in() == nullptr ? "" : stand_in()->sanitizer; }

#endif
