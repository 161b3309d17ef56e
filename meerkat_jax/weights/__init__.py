"""Published weights in and out: readers, tables, our store, exports."""
