# at::parallel_for runs on one thread unless OpenMP is on where it is compiled. The runtime must be the one that torch ships: two of
# them in a process have two thread pools. So the compiler flag is set here, and torch's own copy is linked in place of the compiler's.
find_package(OpenMP REQUIRED COMPONENTS CXX)
set(FOVEATE_OPENMP_FLAGS ${OpenMP_CXX_FLAGS})
set(torch_root "${TORCH_INSTALL_PREFIX}")
file(GLOB found "${torch_root}/lib/libgomp*.so*" "${torch_root}/lib/libomp*.so*" "${torch_root}/../torch.libs/libgomp*.so*")
if(found)
  list(GET found 0 FOVEATE_OPENMP_LIBRARY)
else()
  set(FOVEATE_OPENMP_LIBRARY ${OpenMP_CXX_LIBRARIES})  # a torch built here uses the compiler's
endif()
