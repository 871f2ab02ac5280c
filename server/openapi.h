/* openapi.h - the schemas of answers, of which openapi.c makes a part of /openapi.json. */
#ifndef GAZE_SERVER_OPENAPI_H
#define GAZE_SERVER_OPENAPI_H

extern const char openapi_answers[]; /* members of an object; ' stands for " */

#endif
