// A folder that is gone when the test is.
#ifndef TIERCEL_TESTS_TIERING_TEMP_FOLDER_H_
#define TIERCEL_TESTS_TIERING_TEMP_FOLDER_H_

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tiercel {

class TempFolder {
 public:
  TempFolder() {
    std::string name = std::filesystem::temp_directory_path() / "tiercel-test-XXXXXX";
    path_ = mkdtemp(name.data()) != nullptr ? name : "";
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tiercel

#endif  // TIERCEL_TESTS_TIERING_TEMP_FOLDER_H_
