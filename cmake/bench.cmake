# bench/*.cpp as one program, for `make bench`.
find_package(benchmark REQUIRED)
file(GLOB sources CONFIGURE_DEPENDS bench/*.cpp)
add_executable(foveate_bench EXCLUDE_FROM_ALL ${sources})
target_compile_options(foveate_bench PRIVATE ${FOVEATE_WARNINGS} -Wno-missing-field-initializers -Wno-maybe-uninitialized)
target_link_libraries(foveate_bench PRIVATE foveate benchmark::benchmark)
