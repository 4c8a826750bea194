// The distribution's RocksDB is not built for ThreadSanitizer, which therefore sees neither its atomics nor
// how its threads hand work over, and takes both for races. What happens inside of it is excused. That it
// reads a record while someone writes to it would be excused as well; such a record does not verify when
// it is read again, which the tests do.
extern "C" const char* __tsan_default_suppressions();

extern "C" const char* __tsan_default_suppressions() {  // NOLINT: the runtime's name.
  return "race:librocksdb.so\n";
}
