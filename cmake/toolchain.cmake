# Compiler settings that concern no single target.
set(FOVEATE_WARNINGS -Wall -Wextra -Wpedantic -Wshadow)

if(FOVEATE_SANITIZE)
  # torch hides its type information, which the check of virtual tables would need.
  add_compile_options(-fsanitize=${FOVEATE_SANITIZE} -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${FOVEATE_SANITIZE})
endif()

# ccache takes part where it is installed. A precompiled header defeats it unless time stamps and the header's macros may differ.
find_program(FOVEATE_CCACHE ccache)
mark_as_advanced(FOVEATE_CCACHE)
if(PROJECT_IS_TOP_LEVEL AND FOVEATE_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} ${FOVEATE_CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    add_compile_options(-fpch-preprocess)
  endif()
endif()

# Torch of the Python environment that builds this, unless another was asked for.
if(SKBUILD AND NOT Torch_DIR)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path, end='')"
                  OUTPUT_VARIABLE torch_prefix ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "foveate is built against the torch you have, and ${Python_EXECUTABLE} has none: "
                        "pip install torch==2.13.0, then pip install --no-build-isolation .")
  endif()
  list(PREPEND CMAKE_PREFIX_PATH ${torch_prefix})
endif()
