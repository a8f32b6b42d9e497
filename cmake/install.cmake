# The library, its headers (flat), and what find_package(foveate) reads.
include(CMakePackageConfigHelpers)
set(FOVEATE_PACKAGE_DIR share/cmake/foveate)

if(SKBUILD)
  # In site-packages torch is a neighbour. A wheel holds no links, so the library is one file without versioned names.
  set_target_properties(foveate PROPERTIES INSTALL_RPATH "$ORIGIN/../../torch/lib")
else()
  set_target_properties(foveate PROPERTIES INSTALL_RPATH ${TORCH_INSTALL_PREFIX}/lib VERSION ${PROJECT_VERSION}
                                           SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()

# Headers are installed from the sources, since build/include holds links.
install(FILES ${FOVEATE_HEADERS} ${FOVEATE_INCLUDE}/foveate/version.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/foveate)
install(TARGETS foveate EXPORT foveate LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT foveate FILE foveateTargets.cmake NAMESPACE foveate:: DESTINATION ${FOVEATE_PACKAGE_DIR})

set(FOVEATE_TORCH_VERSION ${Torch_VERSION})
string(REGEX MATCH "^[0-9]+\\.[0-9]+" FOVEATE_TORCH_SERIES ${Torch_VERSION})
configure_package_config_file(cmake/foveateConfig.cmake.in foveateConfig.cmake INSTALL_DESTINATION ${FOVEATE_PACKAGE_DIR})
write_basic_package_version_file(foveateConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/foveateConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/foveateConfigVersion.cmake
        DESTINATION ${FOVEATE_PACKAGE_DIR})

if(SKBUILD)
  # The Python package compares it with the torch it finds, and says what to do when they differ.
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/torch_version.txt ${Torch_VERSION})
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/torch_version.txt DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
