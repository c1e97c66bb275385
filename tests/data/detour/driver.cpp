// Answers of the Detour library itself, asked as habitat-sim's PathFinder.cpp asks it. See README.md.
//   driver NAVMESH QUERIES ANSWERS
// QUERIES: float32 [N, 6], a start and an end. ANSWERS: float32 [N, 12], see `answer`.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "DetourCommon.h"
#include "DetourNavMesh.h"
#include "DetourNavMeshQuery.h"

static const int WALK = 1, DISABLED = 4, MAX_POLYGONS = 256;
static const float STEP = 0.25f;

static dtNavMesh* mesh;
static dtNavMeshQuery* query;
static dtQueryFilter filter;
static std::unordered_map<dtPolyRef, int> islands;
static std::vector<float> radii;

static bool load(const char* path) {
  FILE* file = fopen(path, "rb");
  int head[3];  // magic, version, tiles
  dtNavMeshParams grid;
  if (!file || fread(head, sizeof head, 1, file) != 1 || fread(&grid, sizeof grid, 1, file) != 1) return false;
  if (head[1] >= 2) fseek(file, 56, SEEK_CUR);  // settings
  mesh = dtAllocNavMesh();
  if (dtStatusFailed(mesh->init(&grid))) return false;
  for (int i = 0; i < head[2]; ++i) {
    unsigned lead[2];  // reference, size
    if (fread(lead, sizeof lead, 1, file) != 1) return false;
    unsigned char* data = static_cast<unsigned char*>(dtAlloc(lead[1], DT_ALLOC_PERM));
    if (fread(data, lead[1], 1, file) != 1) return false;
    if (dtStatusFailed(mesh->addTile(data, lead[1], DT_TILE_FREE_DATA, 0, nullptr))) return false;
  }
  fclose(file);
  filter.setIncludeFlags(WALK);
  filter.setExcludeFlags(0);
  query = dtAllocNavMeshQuery();
  return dtStatusSucceed(query->init(mesh, 2048));
}

template <typename Visit>
static void for_each_polygon(Visit visit) {
  for (int i = 0; i < mesh->getMaxTiles(); ++i) {
    const dtMeshTile* tile = const_cast<const dtNavMesh*>(mesh)->getTile(i);
    if (!tile || !tile->header) continue;
    for (int j = 0; j < tile->header->polyCount; ++j) visit(mesh->encodePolyId(tile->salt, i, j), tile, tile->polys[j], j);
  }
}

static void expand(dtPolyRef start) {
  std::vector<dtPolyRef> stack{start};
  std::vector<const float*> corners;
  islands[start] = radii.size();
  while (!stack.empty()) {
    const dtMeshTile *tile, *other;
    const dtPoly *polygon, *neighbour;
    mesh->getTileAndPolyByRefUnsafe(stack.back(), &tile, &polygon);
    stack.pop_back();
    for (int i = 0; i < polygon->vertCount; ++i) corners.push_back(&tile->verts[polygon->verts[i] * 3]);
    for (unsigned k = polygon->firstLink; k != DT_NULL_LINK; k = tile->links[k].next) {
      const dtPolyRef next = tile->links[k].ref;
      mesh->getTileAndPolyByRefUnsafe(next, &other, &neighbour);
      if (islands.count(next) || !(neighbour->flags & WALK)) continue;
      islands[next] = radii.size();
      stack.push_back(next);
    }
  }
  float centre[3] = {0, 0, 0}, radius = 0;
  for (const float* corner : corners) dtVadd(centre, centre, corner);
  dtVscale(centre, centre, 1.0f / corners.size());
  for (const float* corner : corners) radius = dtMax(radius, dtVdist(centre, corner));
  radii.push_back(radius);
}

static float area(const dtMeshTile* tile, const dtPoly& polygon, int index) {
  const dtPolyDetail& detail = tile->detailMeshes[index];
  float sum = 0;
  for (int i = 0; i < detail.triCount; ++i) {
    const unsigned char* row = &tile->detailTris[(detail.triBase + i) * 4];
    const float* corner[3];
    for (int k = 0; k < 3; ++k)
      corner[k] = row[k] < polygon.vertCount ? &tile->verts[polygon.verts[row[k]] * 3]
                                             : &tile->detailVerts[(detail.vertBase + row[k] - polygon.vertCount) * 3];
    float a[3], b[3], normal[3];
    dtVsub(a, corner[1], corner[0]);
    dtVsub(b, corner[2], corner[1]);
    dtVcross(normal, a, b);
    sum += 0.5f * dtVlen(normal);
  }
  return sum;
}

static dtPolyRef project(const float* point, float* nearest) {
  const float reach[3] = {2, 4, 2};
  dtPolyRef polygon = 0;
  nearest[0] = nearest[1] = nearest[2] = NAN;
  query->findNearestPoly(point, reach, &filter, &polygon, nearest);
  return polygon;
}

static bool magnum_equal(float a, float b) {
  const float away = fabsf(a - b);
  return away < 1e-5f || (a != 0 && b != 0 && away / (fabsf(a) + fabsf(b)) < 1e-5f);
}

static float distance(const float* start, dtPolyRef here, const float* from, const float* end, dtPolyRef there, const float* to) {
  if (!here || !there) return INFINITY;
  if (magnum_equal(from[0], to[0]) && magnum_equal(from[1], to[1]) && magnum_equal(from[2], to[2])) return 0;
  if (islands[here] != islands[there]) return INFINITY;
  dtPolyRef corridor[MAX_POLYGONS];
  float points[3 * MAX_POLYGONS], length = 0;
  int polygons = 0, count = 0;
  if (query->findPath(here, there, from, to, &filter, corridor, &polygons, MAX_POLYGONS) != DT_SUCCESS) return INFINITY;
  if (query->findStraightPath(start, end, corridor, polygons, points, 0, 0, &count, MAX_POLYGONS) != DT_SUCCESS) return INFINITY;
  for (int i = 1; i < count; ++i) length += dtVdist(&points[3 * i - 3], &points[3 * i]);
  return length;
}

static void step(const float* start, dtPolyRef here, const float* from, const float* target, float* reached) {
  float nearest[3], end[3];
  const dtPolyRef there = project(target, nearest);
  dtVcopy(reached, start);
  if (!here || !there || islands[here] != islands[there]) return;
  dtPolyRef visited[MAX_POLYGONS];
  int count = 0;
  query->moveAlongSurface(here, from, target, &filter, end, visited, &count, MAX_POLYGONS);
  if (!count) return;
  query->getPolyHeight(visited[count - 1], end, &end[1]);
  const dtPolyRef landed = project(end, nearest);
  if (!landed || islands[landed] != islands[here]) {
    const dtMeshTile* tile;
    const dtPoly* polygon;
    mesh->getTileAndPolyByRefUnsafe(visited[count - 1], &tile, &polygon);
    float centre[3] = {0, 0, 0}, inwards[3];
    for (int i = 0; i < polygon->vertCount; ++i) dtVadd(centre, centre, &tile->verts[polygon->verts[i] * 3]);
    dtVscale(centre, centre, 1.0f / polygon->vertCount);
    dtVsub(inwards, centre, end);
    dtVnormalize(inwards);
    dtVmad(end, end, inwards, 1e-4f);
  }
  dtVcopy(reached, end);
}

// nearest point (3), island radius, obstacle distance, path length, target of a step towards the end (3), where it led (3)
static void answer(const float* start, const float* end, float* out) {
  float from[3], to[3], hit[3], normal[3];
  const dtPolyRef here = project(start, from), there = project(end, to);
  dtVcopy(out, from);
  out[3] = here ? radii[islands[here]] : 0;
  out[4] = INFINITY;
  if (here) query->findDistanceToWall(here, from, 2.0f, &filter, &out[4], hit, normal);
  out[5] = distance(start, here, from, end, there, to);
  const float away = dtVdist2D(start, end);
  dtVset(out + 6, start[0] + (end[0] - start[0]) / away * STEP, start[1], start[2] + (end[2] - start[2]) / away * STEP);
  step(start, here, from, out + 6, out + 9);
}

int main(int, char** argv) {
  if (!load(argv[1])) return 1;
  for_each_polygon([](dtPolyRef polygon, const dtMeshTile*, const dtPoly&, int) {
    if (!islands.count(polygon)) expand(polygon);
  });
  for_each_polygon([](dtPolyRef ref, const dtMeshTile* tile, const dtPoly& polygon, int index) {
    if (area(tile, polygon, index) < 1e-5f) mesh->setPolyFlags(ref, DISABLED);
  });
  FILE* queries = fopen(argv[2], "rb");
  FILE* answers = fopen(argv[3], "wb");
  float pair[6], out[12];
  while (fread(pair, sizeof pair, 1, queries) == 1) {
    answer(pair, pair + 3, out);
    fwrite(out, sizeof out, 1, answers);
  }
  fclose(answers);
  return 0;
}
