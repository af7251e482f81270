// In place of codecs that no store of geoflow has.
export default class None {
  static fromConfig() {
    throw new Error('this store is compressed with a codec that the viewer does not have; geoflow writes zstd');
  }
}
