#include "client/cpp/view_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace tiercel {

Result<std::optional<View>> ViewFile::Poll() {
  struct stat now = {};
  if (stat(path_.c_str(), &now) != 0) {
    if (missing_) return std::nullopt;
    missing_ = true;
    return Fail(Code::kNotFound, fmt::format("view file {}: {}", path_, std::strerror(errno)));
  }
  missing_ = false;
  if (now.st_mtim.tv_sec == changed_.tv_sec && now.st_mtim.tv_nsec == changed_.tv_nsec &&
      now.st_ino == inode_ && now.st_size == size_) {
    return std::nullopt;
  }
  changed_ = now.st_mtim;
  inode_ = now.st_ino;
  size_ = now.st_size;
  std::ifstream in(path_);
  std::ostringstream text;
  text << in.rdbuf();
  Result<View> view = ParseView(text.str());
  if (!view)
    return Fail(view.error().code, fmt::format("view file {}: {}", path_, view.error().message));
  return std::optional<View>(std::move(*view));
}

Result<std::optional<View>> ViewMerge::Take(const std::string& endpoint, std::string_view json) {
  TIERCEL_ASSIGN(View view, ParseView(json));
  if (view.nodes.size() == 1) view.nodes[0].endpoint = endpoint;
  MutexLock lock(mutex_);
  views_[endpoint] = std::move(view);
  const View* best = nullptr;
  for (const auto& [from, candidate] : views_) {
    if (candidate.nodes.size() > 1 && (best == nullptr || candidate.epoch > best->epoch)) {
      best = &candidate;
    }
  }
  View merged;
  if (best != nullptr) {
    merged = *best;
  } else {
    for (const auto& [from, candidate] : views_) {
      merged.epoch = std::max(merged.epoch, candidate.epoch);
      for (const NodeInfo& node : candidate.nodes) {
        const bool known = std::any_of(merged.nodes.begin(), merged.nodes.end(),
                                       [&](const NodeInfo& other) { return other.id == node.id; });
        if (!known) merged.nodes.push_back(node);
      }
    }
    std::sort(merged.nodes.begin(), merged.nodes.end(),
              [](const NodeInfo& a, const NodeInfo& b) { return a.id < b.id; });
  }
  std::string text = FormatView(merged);
  if (text == last_) return std::nullopt;
  last_ = std::move(text);
  return std::optional<View>(std::move(merged));
}

}  // namespace tiercel
