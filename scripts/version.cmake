# Writes OUT with the version and the git id of SOURCE; leaves the file alone when nothing has changed.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE git OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(git STREQUAL "")
  set(git "unknown")
endif()
set(text "#define DSV3_VERSION_TEXT \"${VERSION}\"\n#define DSV3_GIT_ID \"${git}\"\n")
if(EXISTS ${OUT})
  file(READ ${OUT} old)
endif()
if(NOT "${old}" STREQUAL "${text}")
  file(WRITE ${OUT} "${text}")
endif()
