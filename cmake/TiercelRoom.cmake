# A room is one static library, tiercel_<name> (alias tiercel::<name>), whose headers are included
# root-relative and each compile alone (VERIFY_INTERFACE_HEADER_SETS).
#
#   tiercel_room(tiering SOURCES a.cc b.cc HEADERS a.h b.h DEPS tiercel::proto)
#   tiercel_test(tiering_index_test SOURCES index_test.cc DEPS tiercel::tiering [LABELS unit])

set(TIERCEL_WARNINGS -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
    # GCC 12 sees phantom overflows inside inlined std::string and vector code, and calls the undefined
    # inputs of its own AVX-512 intrinsics uninitialized.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict;-Wno-stringop-overflow;-Wno-array-bounds;-Wno-maybe-uninitialized;-Wno-uninitialized>
    $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)

function(tiercel_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${TIERCEL_WARNINGS}>)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

function(tiercel_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;HEADERS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(tiercel_${name} STATIC ${ROOM_SOURCES})
  add_library(tiercel::${name} ALIAS tiercel_${name})
  target_sources(tiercel_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${ROOM_HEADERS})
  set_target_properties(tiercel_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  tiercel_settings(tiercel_${name})
  target_link_libraries(tiercel_${name} PUBLIC ${ROOM_DEPS} PRIVATE ${ROOM_PRIVATE_DEPS})
endfunction()

function(tiercel_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${T_SOURCES})
  tiercel_settings(${name})
  target_link_libraries(${name} PRIVATE ${T_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(NOT T_LABELS)
    set(T_LABELS unit)
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  if(TIERCEL_SANITIZE)
    math(EXPR T_TIMEOUT "${T_TIMEOUT} * 15")  # Beside other work, too.
  endif()
  add_test(NAME ${name} COMMAND ${name})
  if(NOT TARGET unit_tests)
    add_custom_target(unit_tests)  # All that ctest runs, and no programs.
  endif()
  add_dependencies(unit_tests ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT})
  if(TIERCEL_SANITIZE STREQUAL thread)
    # UCX writes its hooks over the entry of mmap and munmap, which ThreadSanitizer has replaced already.
    set_tests_properties(${name} PROPERTIES ENVIRONMENT UCX_MEM_EVENTS=n)
  endif()
endfunction()

# A libFuzzer target where clang builds it, else the same file driven over its corpus by tests/fuzz/replay_main.cc.
function(tiercel_fuzz name)
  cmake_parse_arguments(F "" "" "SOURCES;DEPS" ${ARGN})
  if(TIERCEL_FUZZ)
    add_executable(${name} ${F_SOURCES})
    tiercel_settings(${name})
    target_link_libraries(${name} PRIVATE ${F_DEPS})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer,address,undefined)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer,address,undefined)
  endif()
endfunction()
