// The architecture as an executable table: who may include whom, who may see which library, and the few
// rules of form that a reader relies on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace tiercel {
namespace {

namespace fs = std::filesystem;
using ::testing::IsEmpty;

const std::map<std::string, std::set<std::string>>& MayInclude() {
  static const std::map<std::string, std::set<std::string>> table = {
      {"base", {}},
      {"proto", {"base"}},
      {"kernels", {"proto", "base"}},
      {"transport", {"proto", "base"}},
      {"tiering", {"kernels", "proto", "base"}},
      {"client", {"transport", "kernels", "proto", "base"}},
      {"cacheserver", {"client", "tiering", "transport", "kernels", "proto", "base"}},
  };
  return table;
}

struct Library {
  std::string name;
  std::regex include;
  std::vector<std::string> allowed;  // Prefixes of paths.
};

const std::vector<Library>& Libraries() {
  static const std::vector<Library> libraries = {
      {"UCX", std::regex("^(ucp|ucs|uct)/"), {"transport/ucx"}},
      {"RocksDB", std::regex("^rocksdb/"), {"tiering/ssd"}},
      {"libpng", std::regex("^png\\.h"), {"cacheserver/curve_chart"}},
      {"CUDA", std::regex("^(cuda|nvml|nccl)"), {"kernels/cuda", "tiering/device", "client/nccl/fan_out_nccl"}},
      {"gRPC", std::regex("^(grpc|grpcpp)/|^proto/tiercel\\.(grpc\\.)?pb\\.h"),
       {"transport/grpc_", "client/cpp/grpc_control", "client/cpp/channel", "client/cli/", "cacheserver/grpc_edge"}},
  };
  return libraries;
}

std::vector<std::string> Lines(const fs::path& file) {
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

bool Starts(const std::string& text, const std::string& prefix) { return text.compare(0, prefix.size(), prefix) == 0; }

std::vector<fs::path> Sources(const fs::path& root) {
  std::vector<fs::path> files;
  for (const auto& [room, may] : MayInclude()) {
    if (!fs::exists(root / room)) continue;
    for (const auto& item : fs::recursive_directory_iterator(root / room)) {
      const std::string extension = item.path().extension();
      if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh") {
        files.push_back(fs::relative(item.path(), root));
      }
    }
  }
  return files;
}

// Every broken rule of the tree at root, as a sentence.
std::vector<std::string> Broken(const fs::path& root) {
  static const std::regex kInclude("^\\s*#\\s*include\\s*[<\"]([^>\"]+)[>\"]");
  std::vector<std::string> broken;
  for (const fs::path& file : Sources(root)) {
    const std::string path = file.string();
    const std::string room = file.begin()->string();
    const std::vector<std::string> lines = Lines(root / file);
    const std::string first = lines.empty() ? "" : lines.front();
    if (lines.size() > 800 && (first + (lines.size() > 1 ? lines[1] : "")).find("over 800 lines:") == std::string::npos) {
      broken.push_back(path + " has over 800 lines and no reason in its first comment");
    }
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string where = path + ":" + std::to_string(i + 1) + ": ";
      if (lines[i].find('\t') != std::string::npos) broken.push_back(where + "a tab");
      if (!lines[i].empty() && lines[i].back() == ' ') broken.push_back(where + "trailing space");
      std::smatch match;
      if (!std::regex_search(lines[i], match, kInclude)) continue;
      const std::string included = match[1];
      const std::string other = included.substr(0, included.find('/'));
      if (MayInclude().contains(other) && other != room && !MayInclude().at(room).contains(other) &&
          included.find(".pb.h") == std::string::npos) {
        broken.push_back(where + room + " must not include " + other);
      }
      if (room == "cacheserver" && Starts(included, "client/connectors")) {
        broken.push_back(where + "cacheserver must not include client's connectors");
      }
      for (const Library& library : Libraries()) {
        if (!std::regex_search(included, library.include)) continue;
        bool allowed = false;
        for (const std::string& prefix : library.allowed) allowed |= Starts(path, prefix);
        if (!allowed) broken.push_back(where + path + " must not see " + library.name);
      }
    }
  }
  return broken;
}

TEST(LayeringTest, EveryRoomIncludesOnlyWhatItMay) {
  EXPECT_THAT(Broken(TIERCEL_SOURCE_DIR), IsEmpty());
}

TEST(LayeringTest, EveryRoomSaysWhyItExists) {
  for (const auto& [room, may] : MayInclude()) {
    const fs::path readme = fs::path(TIERCEL_SOURCE_DIR) / room / "README.md";
    ASSERT_TRUE(fs::exists(readme)) << room << " has no README.md";
    EXPECT_LE(Lines(readme).size(), 40u) << readme;
  }
}

TEST(LayeringTest, AForbiddenIncludeIsFound) {
  std::string pattern = fs::temp_directory_path() / "layering-XXXXXX";
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  const fs::path root = pattern;
  const auto write = [&root](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proto/block.h", "#include \"base/result.h\"\n");
  write("tiering/good.h", "#include \"kernels/codec.h\"\n#include <rocksdb/db.h>\n");
  write("tiering/ssd_fine.cc", "#include <rocksdb/db.h>\n");
  write("proto/bad.h", "#include \"tiering/host_arena.h\"\n");
  write("client/cpp/bad.cc", "#include \"tiering/tier_stack.h\"\n#include <ucp/api/ucp.h>\n");
  write("kernels/spaces.h", "int a; \n\tint b;\n");
  std::string long_file;
  for (int i = 0; i < 801; ++i) long_file += "// line\n";
  write("base/long.h", long_file);
  const std::vector<std::string> broken = Broken(root);
  EXPECT_THAT(broken, ::testing::UnorderedElementsAre(
                          "proto/bad.h:1: proto must not include tiering",
                          "client/cpp/bad.cc:1: client must not include tiering",
                          "client/cpp/bad.cc:2: client/cpp/bad.cc must not see UCX",
                          "tiering/good.h:2: tiering/good.h must not see RocksDB",
                          "kernels/spaces.h:1: trailing space", "kernels/spaces.h:2: a tab",
                          "base/long.h has over 800 lines and no reason in its first comment"));
  fs::remove_all(root);
}

}  // namespace
}  // namespace tiercel
