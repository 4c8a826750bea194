// Golden vectors: committed JSON that every implementation of a format must reproduce, this one and
// the pure Python one alike. TIERCEL_WRITE_GOLDEN=1 rewrites the files; a changed byte is a changed
// format and needs a new version number, not a new file.
#ifndef TIERCEL_TESTS_PROTO_GOLDEN_H_
#define TIERCEL_TESTS_PROTO_GOLDEN_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

namespace tiercel {

// Compares actual with tests/proto/golden/<name>.json.
inline void ExpectGolden(const std::string& name, const nlohmann::json& actual) {
  const std::string path = std::string(TIERCEL_SOURCE_DIR) + "/tests/proto/golden/" + name + ".json";
  if (std::getenv("TIERCEL_WRITE_GOLDEN") != nullptr) {
    std::ofstream(path) << actual.dump(1) << "\n";
  }
  std::ifstream file(path);
  ASSERT_TRUE(file) << path << " is missing";
  const auto expected = nlohmann::json::parse(file, nullptr, false);
  ASSERT_FALSE(expected.is_discarded()) << path << " is not JSON";
  EXPECT_EQ(nlohmann::json::diff(expected, actual), nlohmann::json::array()) << path;
}

}  // namespace tiercel

#endif  // TIERCEL_TESTS_PROTO_GOLDEN_H_
