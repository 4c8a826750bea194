// The distribution's RocksDB is not built for ThreadSanitizer, which therefore cannot see the atomics by
// which it counts the users of a version, and takes the freeing of the last one for a race. Only these
// are excused: records that RocksDB reads from our memory, and everything of ours, stay watched.
extern "C" const char* __tsan_default_suppressions();

extern "C" const char* __tsan_default_suppressions() {  // NOLINT: the runtime's name.
  return "race:rocksdb::Arena::~Arena\n"
         "race:rocksdb::Version::Unref\n"
         "race:rocksdb::Version::~Version\n"
         "race:rocksdb::SuperVersion::\n";
}
