"""From a perceived picture and sound to answers in words, boxes and seconds."""
