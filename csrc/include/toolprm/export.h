/* TOOLPRM_API marks what the shared library gives out; everything else in it is hidden. C and C++.
 *
 * Whoever links the static library defines TOOLPRM_STATIC; CMake does it for those who link toolprm::toolprm. */
#ifndef TOOLPRM_EXPORT_H
#define TOOLPRM_EXPORT_H

#if defined(TOOLPRM_STATIC)
#define TOOLPRM_API
#elif !defined(_WIN32)
#define TOOLPRM_API __attribute__((visibility("default")))
#elif defined(TOOLPRM_BUILDING)
#define TOOLPRM_API __declspec(dllexport)
#else
#define TOOLPRM_API __declspec(dllimport)
#endif

#endif
