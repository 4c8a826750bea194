#include "cacheserver/demotion.h"

#include "kernels/recode.h"

namespace tiercel {
namespace {

constexpr uint32_t kExactTokens = 4;  // Of a chain's first; as clients do.

}  // namespace

ByteSpan Demotion::Recode(SsdEntry* entry, ByteSpan record) const {
  static thread_local RecodeSpace space;
  if (entry->quality != QualityClass::kExact) return {};
  std::optional<Recoded> recoded;
  if (entry->demote_to != QualityClass::kExact) {
    EncodeOptions options;
    options.quality = entry->demote_to;
    options.exact_tokens = kExactTokens;
    if (artifact_ != nullptr) {
      options.artifact = artifact_.get();
      recoded = RecodeRecord(record, CodecId::kEcX, &options, &space);
    }
    if (!recoded) {
      options.artifact = nullptr;
      recoded = RecodeRecord(record, CodecId::kEcC, &options, &space);
    }
  }
  if (!recoded) recoded = RecodeRecord(record, CodecId::kLle, nullptr, &space);
  if (!recoded) return {};
  entry->record_bytes = static_cast<uint32_t>(recoded->record.size());
  entry->quality = recoded->quality;
  return recoded->record;
}

}  // namespace tiercel
