/* Convolves an image with the functions that test_neon.py compiles, as cabm/engine/vnni.py does. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int64_t word;

void convolve(word registers, word count, void *source, word row, word channels, void *weights, void *starts,
              void *sums);
void finish(word registers, word count, void *sums, word sums_pixel, word epilogue, void *factors, void *biases,
            void *numbers, void *target, void *following, word codes_pixel, void *floats, word floats_pixel,
            void *addend, word addend_pixel);

static void *get(size_t size) {
    void *memory = malloc(size);
    if (!memory || fread(memory, 1, size, stdin) != size) exit(2);
    return memory;
}

int main(int argc, char **argv) {
    if (argc != 8) return 1;
    word height = atoi(argv[1]), width = atoi(argv[2]), inputs = atoi(argv[3]), outputs = atoi(argv[4]);
    word pixels = atoi(argv[5]), epilogue = atoi(argv[6]), numbers_size = atoi(argv[7]);
    word row = (width + 2) * inputs, size = height * width * outputs;
    uint8_t *image = get((height + 2) * row);
    int8_t *weights = get(9 * inputs * outputs);
    int32_t *starts = get(4 * outputs);
    float *factors = get(4 * outputs), *biases = get(4 * outputs), *numbers = get(4 * numbers_size);
    uint8_t *codes = calloc(size, 1);
    float *floats = calloc(size, 4);
    static int32_t sums[64 * 64];
    for (word first = 0; first < outputs; first += 16) {
        word registers = outputs - first < 16 ? (outputs - first) / 4 : 4;
        for (word y = 0; y < height; y++) {
            for (word x = 0; x < width; x += pixels) {
                word count = width - x < pixels ? width - x : pixels;
                word place = (y * width + x) * outputs + first;
                convolve(registers, count, image + y * row + x * inputs, row, inputs,
                         weights + first * 9 * inputs, starts + first, sums);
                finish(registers, count, sums, 16 * registers, epilogue, factors + first, biases + first, numbers,
                       codes + place, codes + place, outputs, floats + place, 4 * outputs, floats + place,
                       4 * outputs);
            }
        }
    }
    fwrite(codes, 1, size, stdout);
    fwrite(floats, 4, size, stdout);
    return 0;
}
