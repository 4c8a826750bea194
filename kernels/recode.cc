#include "kernels/recode.h"

namespace tiercel {

std::optional<Recoded> RecodeRecord(ByteSpan record, CodecId codec, const EncodeOptions* options,
                                    RecodeSpace* space) {
  const Result<RecordView> view = ParseRecord(record);
  if (!view || view->layout.opaque() || view->codec == codec) return std::nullopt;
  const Codec* wanted = FindCodec(codec);
  if (wanted == nullptr || wanted->lossy() != (options != nullptr)) return std::nullopt;
  if (view->lossy) return std::nullopt;

  RecordSpec spec;
  spec.layout = view->layout;
  spec.scope = view->scope;
  spec.quality = view->quality;
  spec.pos0 = view->pos0;
  spec.layer_begin = view->layer_begin;
  spec.layer_end = view->layer_end;
  spec.options = options;

  space->decoded.resize(view->raw_bytes);
  if (!DecodeRecord(*view, view->layout, space->decoded, 0, 0)) return std::nullopt;
  space->record.resize(MaxRecordBytes(spec, 0));
  const Result<uint64_t> bytes = EncodeRecord(spec, codec, space->decoded, space->record);
  if (!bytes || *bytes > record.size() - record.size() / 32) return std::nullopt;
  const ByteSpan recoded = ByteSpan(space->record).first(*bytes);
  const Result<RecordView> made = ParseRecord(recoded);
  if (!made || (!made->lossy && made->decoded_digest != view->decoded_digest)) return std::nullopt;
  return Recoded{recoded, made->quality};
}

}  // namespace tiercel
