# Refuses a library that would load two OpenMP runtimes: cmake -DLIBRARY=libfoveate.so -P check_openmp.cmake
execute_process(COMMAND ldd ${LIBRARY} OUTPUT_VARIABLE loaded COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "lib(gomp|omp|iomp5)[^\n]*=> [^ \n]+" runtimes "${loaded}")
list(REMOVE_DUPLICATES runtimes)
list(LENGTH runtimes count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "expected one OpenMP runtime, got ${count}: ${runtimes}")
endif()
message(STATUS "one OpenMP runtime: ${runtimes}")
