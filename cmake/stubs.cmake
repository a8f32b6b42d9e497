# Type stubs of the classes and functions that Python builds from the catalogue, written by asking the library just linked.
file(GLOB python_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/python/foveate/*.py)
set(stubs ${CMAKE_CURRENT_BINARY_DIR}/stubs/__init__.pyi ${CMAKE_CURRENT_BINARY_DIR}/stubs/nn.pyi)
add_custom_command(
  OUTPUT ${stubs}
  COMMAND ${CMAKE_COMMAND} -E env PYTHONPATH=${CMAKE_CURRENT_SOURCE_DIR}/python FOVEATE_LIBRARY=$<TARGET_FILE:foveate> PYTHONDONTWRITEBYTECODE=1
          ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tools/stubs.py ${CMAKE_CURRENT_BINARY_DIR}/stubs
  DEPENDS foveate ${python_sources} ${CMAKE_CURRENT_SOURCE_DIR}/tools/stubs.py
  COMMENT "Writing type stubs"
  VERBATIM)
add_custom_target(foveate_stubs ALL DEPENDS ${stubs})
install(FILES ${stubs} DESTINATION .)
