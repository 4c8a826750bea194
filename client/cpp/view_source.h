// Where a client's view comes from: a file that is re-read when it changes, or the views that nodes
// stream, merged into one.
//
// Threads: ViewFile has one owner; ViewMerge locks.
#ifndef TIERCEL_CLIENT_CPP_VIEW_SOURCE_H_
#define TIERCEL_CLIENT_CPP_VIEW_SOURCE_H_

#include <sys/stat.h>

#include <map>
#include <optional>
#include <string>

#include "base/mutex.h"
#include "base/result.h"
#include "proto/view.h"

namespace tiercel {

class ViewFile {
 public:
  explicit ViewFile(std::string path) : path_(std::move(path)) {}

  // The view, when the file is new or has changed since the last call; nullopt when not.
  // Errors: kNotFound, kInvalidArgument with the file's name; told once a change.
  Result<std::optional<View>> Poll();

 private:
  const std::string path_;
  struct timespec changed_ = {};
  uint64_t inode_ = 0;
  int64_t size_ = -1;
  bool missing_ = false;
};

// What several nodes say, as one view. A node that knows only itself is reached where it was asked;
// nodes that each know only themselves are taken together; otherwise the highest epoch counts.
class ViewMerge {
 public:
  // The merged view if this changed it. Errors: ParseView's.
  Result<std::optional<View>> Take(const std::string& endpoint, std::string_view json);

 private:
  Mutex mutex_;
  std::map<std::string, View> views_ TIERCEL_GUARDED_BY(mutex_);
  std::string last_ TIERCEL_GUARDED_BY(mutex_);
};

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_VIEW_SOURCE_H_
