#include <dlfcn.h>
#include <fmt/format.h>
#include <signal.h>
#include <stdlib.h>

#include <array>
#include <filesystem>
#include <vector>

#include "base/mutex.h"
#include "transport/factory.h"
#include "transport/ucx_module.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

void AddFolder(const fs::path& folder, std::vector<fs::path>& out) {
  out.push_back(folder / kUcxModuleFile);
  out.push_back(folder / "../lib" / kUcxModuleFile);
  out.push_back(folder / "../../lib" / kUcxModuleFile);
}

// Where the module may lie, best first: as told, the environment, beside the shared object (or
// program) that this code is in, beside the program.
std::vector<fs::path> Candidates(const std::string& told) {
  std::vector<fs::path> out;
  if (!told.empty()) {
    out.emplace_back(told);
    if (fs::is_directory(told)) out.push_back(fs::path(told) / kUcxModuleFile);
    return out;
  }
  if (const char* path = getenv("TIERCEL_MODULE_PATH"); path != nullptr && *path != '\0') {
    out.emplace_back(path);
    out.push_back(fs::path(path) / kUcxModuleFile);
  }
  std::error_code ignored;
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&MakeUcxTransport), &self) != 0 && self.dli_fname != nullptr) {
    const fs::path file = fs::weakly_canonical(self.dli_fname, ignored);
    if (!file.empty()) AddFolder(file.parent_path(), out);
  }
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  if (!program.empty()) {
    // Test programs lie one folder deeper than lib/ for each folder of the tree.
    fs::path folder = program.parent_path();
    for (int up = 0; up < 4 && folder.has_relative_path(); ++up, folder = folder.parent_path()) {
      out.push_back(folder / kUcxModuleFile);
      out.push_back(folder / "lib" / kUcxModuleFile);
    }
  }
  return out;
}

// libucs installs handlers for these when it is loaded; a process that only borrows it keeps its own.
class SignalKeeper {
 public:
  SignalKeeper() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], nullptr, &saved_[i]);
  }
  ~SignalKeeper() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &saved_[i], nullptr);
  }

 private:
  static constexpr std::array<int, 6> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGUSR1};
  std::array<struct sigaction, 6> saved_{};
};

Result<UcxModuleOpen> Load(const std::string& told) {
  std::string tried;
  for (const fs::path& path : Candidates(told)) {
    std::error_code ignored;
    if (!fs::is_regular_file(path, ignored)) {
      tried += (tried.empty() ? "" : ", ") + path.string();
      continue;
    }
    const SignalKeeper keep;
    // Local symbols only: a process may hold another libucp.
    void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) {
      return Fail(Code::kUnavailable, fmt::format("cannot load the UCX module: {}", dlerror()));
    }
    auto* open = reinterpret_cast<UcxModuleOpen>(dlsym(module, kUcxModuleSymbol));
    if (open == nullptr) {
      return Fail(Code::kUnavailable, fmt::format("{} exports no {}", path.string(), kUcxModuleSymbol));
    }
    return open;
  }
  return Fail(Code::kUnavailable,
              fmt::format("no UCX module: none of {}; set TIERCEL_MODULE_PATH to its folder", tried));
}

}  // namespace

Result<std::unique_ptr<Transport>> MakeUcxTransport(const UcxOptions& options, FrameSink& sink,
                                                    const Clock& clock) {
  static Mutex mutex;
  static UcxModuleOpen open = nullptr;
  UcxModuleOpen chosen = nullptr;
  {
    MutexLock lock(mutex);
    if (open == nullptr) {
      TIERCEL_ASSIGN(open, Load(options.module_path));
    }
    chosen = open;
  }
  std::unique_ptr<Transport> transport;
  Error error{Code::kUnavailable, "the UCX module is of another build of Tiercel"};
  UcxModuleCall call;
  call.options = &options;
  call.sink = &sink;
  call.clock = &clock;
  call.out = &transport;
  call.error = &error;
  if (!chosen(&call)) return Fail(error.code, std::move(error.message));
  return transport;
}

}  // namespace tiercel
