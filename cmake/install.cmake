# The package of C++ and C: headers, libraries, what find_package(edlm) and pkg-config read.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(edlm_package ${CMAKE_INSTALL_LIBDIR}/cmake/edlm)
set(libraries cpu)
if(EDLM_WITH_CUDA)
  list(APPEND libraries cuda)
endif()

install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/csrc/include/edlm ${CMAKE_BINARY_DIR}/include/edlm
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# edlm::cpu and edlm::cuda, and the same with _static.
foreach(library ${libraries})
  foreach(kind "" _static)
    set_target_properties(edlm_${library}${kind} PROPERTIES EXPORT_NAME ${library}${kind})
    install(TARGETS edlm_${library}${kind} EXPORT edlm
      INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  endforeach()
endforeach()
# The plan and the words for a status are the CPU's.
if(EDLM_WITH_CUDA)
  target_link_libraries(edlm_cuda INTERFACE edlm_cpu)
  target_link_libraries(edlm_cuda_static INTERFACE edlm_cpu_static
    $<INSTALL_INTERFACE:CUDA::cudart_static>)
endif()

install(EXPORT edlm NAMESPACE edlm:: FILE edlm-targets.cmake DESTINATION ${edlm_package})
configure_package_config_file(cmake/edlm-config.cmake.in ${CMAKE_BINARY_DIR}/edlm-config.cmake
  INSTALL_DESTINATION ${edlm_package})
set(compatibility SameMajorVersion)
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
endif()
write_basic_package_version_file(${CMAKE_BINARY_DIR}/edlm-config-version.cmake
  COMPATIBILITY ${compatibility})
install(FILES ${CMAKE_BINARY_DIR}/edlm-config.cmake ${CMAKE_BINARY_DIR}/edlm-config-version.cmake
  DESTINATION ${edlm_package})

# Found where they lie, so that an installed folder may be moved.
file(RELATIVE_PATH edlm_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
set(cpu_requires "")
set(cpu_private "-lstdc++ -lm")
set(cuda_requires "Requires: edlm_cpu = ${PROJECT_VERSION}")
set(cuda_private "-lcudart_static -lrt -lpthread -ldl")
foreach(library ${libraries})
  string(TOUPPER ${library} edlm_device)
  set(edlm_library edlm_${library})
  set(edlm_requires ${${library}_requires})
  set(edlm_private ${${library}_private})
  configure_file(cmake/edlm.pc.in ${CMAKE_BINARY_DIR}/${edlm_library}.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/${edlm_library}.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
