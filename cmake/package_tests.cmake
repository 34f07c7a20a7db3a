# The installed package is used in clean folders: csrc/tests/package.sh.
enable_language(C)
add_custom_target(edlm_package_tests)

# edlm_package_program(NAME SOURCE CORE [option...])
function(edlm_package_program name source core)
  add_executable(edlm_${name} EXCLUDE_FROM_ALL ${source})
  target_compile_options(edlm_${name} PRIVATE ${ARGN})
  target_link_options(edlm_${name} PRIVATE ${ARGN})
  target_link_libraries(edlm_${name} PRIVATE ${core})
  add_dependencies(edlm_package_tests edlm_${name})
endfunction()
edlm_package_program(generate_sanitized examples/cpp/generate.cpp edlm_core_sanitized
  -g ${sanitizers})
edlm_package_program(generate_c_sanitized examples/cpp/generate.c edlm_core_sanitized
  -g ${sanitizers})
edlm_package_program(c_api_test csrc/tests/c_api_test.c edlm_core_sanitized
  -g ${sanitizers} -Wall -Wextra -pedantic -Werror)
# One source as C and as C++: the structs of both are the same.
edlm_package_program(same_ops_c csrc/tests/same_ops.c edlm_cpu_static -Wall -Wextra)
edlm_package_program(same_ops_cpp csrc/tests/same_ops.cpp edlm_cpu_static)

add_test(NAME package_build
  COMMAND ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target edlm_package_tests)
set_tests_properties(package_build PROPERTIES
  FIXTURES_SETUP package_programs RESOURCE_LOCK build_tree)
add_test(NAME c_api COMMAND edlm_c_api_test)
set_tests_properties(c_api PROPERTIES FIXTURES_REQUIRED package_programs)

set(stages install cmake headers symbols pkg_config sanitized valgrind)
if(EDLM_WITH_CUDA)
  list(APPEND stages cuda)
endif()
foreach(stage ${stages})
  add_test(NAME package_${stage} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/package.sh
    ${stage} ${CMAKE_BINARY_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(package_${stage} PROPERTIES SKIP_RETURN_CODE 77
    FIXTURES_REQUIRED "package_installed;package_examples;package_programs")
endforeach()
set_tests_properties(package_install PROPERTIES
  FIXTURES_SETUP package_installed FIXTURES_REQUIRED "" RESOURCE_LOCK build_tree)
set_tests_properties(package_cmake PROPERTIES
  FIXTURES_SETUP package_examples FIXTURES_REQUIRED package_installed)

if(EDLM_PYTHON)
  add_test(NAME package_as_python COMMAND ${Python_EXECUTABLE} -m pytest -q -p no:cacheprovider
    ${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/as_python.py)
  set_tests_properties(package_as_python PROPERTIES
    FIXTURES_REQUIRED "package_installed;package_examples;package_programs"
    ENVIRONMENT "OMP_NUM_THREADS=1;EDLM_PROGRAMS=${CMAKE_BINARY_DIR}")
endif()
