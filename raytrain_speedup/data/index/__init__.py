"""An index of the samples in many files, and all that makes one, reads by one, checks and packs.

shards        the tables: which file each sample is in, where, how long, of which class
indexing      makes one: of tar files (tar_scan), of Parquet files (parquet_scan), of class folders
indexed       the source of data that reads by one (reading), from a disk, an object_store or a range_cache
checking      reads every sample once, and puts into quarantine what should not be trained on
packing       writes tar files of what is not fit to be read by ranges
"""
